import type { CacheAllocator } from '../cache/allocator.js'
import { CancelFlag, type Graph } from '../core/graph.js'
import { StateError } from '../errors.js'
import { Results } from './results.js'
import { Sequence } from './sequence.js'
import { StepInput, type StepSequence } from './step-input.js'
import type { Engine, EngineOutcome, EngineRequest } from './types.js'

/** What the engine drives: the captured step of a model, and how to make it again after a failure. */
export interface StepRunner {
  /** Tokens of prompt in one step. */
  readonly chunkTokens: number
  /**
   * The graph whose launches, of at most `tokens` tokens, report one Result a logits row. Captured at the first call and again
   * after `reset`.
   */
  graph(tokens?: number): Graph
  /**
   * Drops a poisoned stream and its graphs, unless the stream of the graph that failed is gone already. The next graph gets
   * another stream, or fails with what the device says of it.
   */
  reset(failed?: Graph): void
}

/** What an engine has done so far. */
export interface EngineStats {
  readonly steps: number
  readonly milliseconds: number
}

/** A launched step: the sequences of its logits rows, and everyone who takes part. */
interface Flight {
  rows: readonly Sequence[]
  members: readonly Sequence[]
  /** Prompt tokens that are done for each member once the step is. */
  prefilled: readonly number[]
  cancel: CancelFlag
  bytes: Promise<Uint8Array | null>
}

// One step is enqueued before the one ahead of it is read, so that the device never waits for JavaScript.
const flightsAtOnce = 2

/**
 * The one loop: admit, prefill a chunk, step, finish. Every request of a model passes through it; a step carries all rows
 * that decode and, behind them, as much prompt as the chunk allows, oldest request first.
 *
 * Look-ahead is one step and its effects are fixed: a stop id or the last token ends a row on the device, with nothing after
 * it; what the host decides about token n (a stop string, an abort) acts at n + 2, and n + 1 is discarded.
 */
export class BatchEngine implements Engine {
  readonly #runner: StepRunner
  readonly #allocator: CacheAllocator
  readonly #input = new StepInput()
  readonly #waiting: Sequence[] = []
  readonly #running: Sequence[] = []
  readonly #flights: Flight[] = []
  /** What the last step was launched with. */
  #graph: Graph | undefined
  readonly #stats = { steps: 0, milliseconds: 0 }
  #looping = false
  #disposed = false

  constructor(runner: StepRunner, allocator: CacheAllocator) {
    this.#runner = runner
    this.#allocator = allocator
  }

  /** Requests waiting and running. */
  get load(): { waiting: number; running: number } {
    return { waiting: this.#waiting.length, running: this.#running.length }
  }

  /**
   * Totals since the engine was made: steps received, and milliseconds that this thread spent on composing, launching and
   * receiving them, the requests' callbacks included.
   */
  get stats(): EngineStats {
    return { ...this.#stats }
  }

  async run(request: EngineRequest): Promise<EngineOutcome> {
    request.signal?.throwIfAborted()
    if (this.#disposed) throw disposedError()
    const sequence = new Sequence(request)
    const abort = () => this.#abort(sequence)
    request.signal?.addEventListener('abort', abort, { once: true })
    this.#waiting.push(sequence)
    void this.#loop()
    try {
      return await sequence.settled
    } finally {
      request.signal?.removeEventListener('abort', abort)
    }
  }

  /** Rejects everything under way with DISPOSED. The runner's stream is the owner's to close. */
  dispose(): void {
    this.#disposed = true
    this.#failAll(disposedError())
  }

  async #loop(): Promise<void> {
    if (this.#looping) return
    this.#looping = true
    try {
      for (;;) {
        this.#timed(() => {
          while (this.#flights.length < flightsAtOnce && this.#launch());
        })
        const [flight] = this.#flights
        if (flight === undefined) break
        const bytes = await flight.bytes
        this.#timed(() => {
          this.#flights.shift()
          this.#receive(flight, bytes)
        })
        this.#stats.steps += 1
      }
    } catch (error) {
      this.#recover(error)
    } finally {
      this.#looping = false
    }
  }

  #timed(body: () => void): void {
    const start = performance.now()
    try {
      body()
    } finally {
      this.#stats.milliseconds += performance.now() - start
    }
  }

  /** Composes and launches a step; false when there is nothing to compute. */
  #launch(): boolean {
    this.#admit()
    const steps: StepSequence[] = []
    const rows: Sequence[] = []
    const members: Sequence[] = []
    const add = (sequence: Sequence, step: StepSequence) => {
      steps.push(step)
      members.push(sequence)
      if (step.rows.length > 0) rows.push(sequence)
    }
    for (const sequence of this.#running) {
      if (sequence.lease && sequence.decodable) add(sequence, sequence.decode(sequence.lease))
    }
    let budget = this.#runner.chunkTokens
    for (const sequence of this.#running) {
      if (budget === 0) break
      if (sequence.done || !sequence.prefilling || !sequence.lease || members.includes(sequence)) continue
      const step = sequence.prefill(sequence.lease, budget)
      budget -= step.ids?.length ?? 0
      add(sequence, step)
    }
    if (steps.length === 0) return false
    const cancel = new CancelFlag()
    this.#graph = undefined
    this.#graph = this.#runner.graph(steps.reduce((sum, step) => sum + (step.ids?.length ?? 1), 0))
    const bytes = this.#graph.launch(this.#input.pack(steps), cancel)
    // The loop awaits flights in order; a later one may fail meanwhile.
    bytes.catch(() => {})
    const prefilled = members.map((member) => member.prefilled)
    this.#flights.push({ rows, members, prefilled, cancel, bytes })
    return true
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next; next = this.#waiting[0]) {
      const lease = this.#allocator.take(next.capacity)
      if (lease === undefined) return
      next.admit(lease)
      this.#running.push(next)
      this.#waiting.shift()
    }
  }

  #receive(flight: Flight, bytes: Uint8Array | null): void {
    if (bytes === null) return
    for (const [index, sequence] of flight.members.entries()) {
      this.#tell(sequence, () => sequence.progress(flight.prefilled[index] ?? 0))
    }
    const results = new Results(bytes)
    for (const [index, sequence] of flight.rows.entries()) {
      const event = results.token(index, sequence.request.logprobs)
      if (event) this.#tell(sequence, () => sequence.receive(event))
    }
  }

  /** Runs a sequence's callback. One that throws ends its own request and no other. */
  #tell(sequence: Sequence, report: () => void): void {
    if (sequence.done) return
    try {
      report()
    } catch (error) {
      sequence.fail(error)
    }
    if (sequence.done) this.#retire(sequence)
  }

  /** The lease is free at once: whatever is in flight for the sequence runs before anything enqueued later. */
  #retire(sequence: Sequence): void {
    const index = this.#running.indexOf(sequence)
    if (index >= 0) this.#running.splice(index, 1)
    if (sequence.lease) this.#allocator.give(sequence.lease)
    sequence.lease = undefined
  }

  #abort(sequence: Sequence): void {
    if (sequence.done) return
    const waiting = this.#waiting.indexOf(sequence)
    if (waiting >= 0) this.#waiting.splice(waiting, 1)
    sequence.fail(sequence.request.signal?.reason)
    this.#retire(sequence)
    for (const flight of this.#flights) {
      if (flight.members.every((member) => member.done)) flight.cancel.cancel()
    }
    void this.#loop()
  }

  /** A step failed, which poisons its stream: everyone under way gets the error, and the next request a new stream. */
  #recover(error: unknown): void {
    this.#flights.length = 0
    this.#failAll(error)
    if (!this.#disposed) this.#runner.reset(this.#graph)
  }

  #failAll(error: unknown): void {
    for (const sequence of this.#waiting.splice(0)) sequence.fail(error)
    for (const sequence of [...this.#running]) {
      sequence.fail(error)
      this.#retire(sequence)
    }
  }
}

function disposedError(): StateError {
  return new StateError('DISPOSED', 'the model was disposed of; load it again')
}
