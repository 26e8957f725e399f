import type { Lease } from '../cache/allocator.js'
import type { RowSampling, StepSequence } from './step-input.js'
import type { EngineOutcome, EngineRequest, TokenEvent } from './types.js'

const none: readonly number[] = []

/** One request on its way through the engine. Times are from `performance.now()`. */
export class Sequence {
  readonly request: EngineRequest
  readonly settled: Promise<EngineOutcome>
  lease: Lease | undefined
  /** It has its outcome; what is still in flight for it is discarded. */
  done = false
  /** Prompt tokens enqueued. */
  prefilled = 0
  /** Sampled tokens enqueued, at most `request.maxTokens`. */
  issued = 0
  readonly #sampling: RowSampling
  readonly #counts: boolean
  readonly #queued = performance.now()
  #reported = 0
  #admitted = 0
  #firstToken = 0
  #received = 0
  #resolve!: (outcome: EngineOutcome) => void
  #reject!: (reason: unknown) => void

  constructor(request: EngineRequest) {
    this.request = request
    const { seed, repetitionPenalty, presencePenalty, frequencyPenalty } = request.sampling
    this.#counts = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0
    this.#sampling = {
      ...request.sampling,
      seed,
      logprobs: request.logprobs ?? -1,
      stopIds: request.stopIds,
      thinkEndIds: request.thinking?.endIds ?? none,
      forcedIds: request.thinking?.forcedIds ?? none,
    }
    this.settled = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  /** Positions that the sequence can come to occupy. The last sampled token is never fed back. */
  get capacity(): number {
    return this.request.prompt.length + this.request.maxTokens - 1
  }

  get prefilling(): boolean {
    return this.prefilled < this.request.prompt.length
  }

  /** Another token can be sampled without reading what is in flight. */
  get decodable(): boolean {
    return !this.done && !this.prefilling && this.issued < this.request.maxTokens
  }

  admit(lease: Lease): void {
    this.lease = lease
    this.#admitted = performance.now()
  }

  /** The next chunk of the prompt, at most `budget` tokens; its last one samples the first token. */
  prefill(lease: Lease, budget: number): StepSequence {
    const { prompt, thinking } = this.request
    const position = this.prefilled
    const ids = prompt.subarray(position, position + budget)
    this.prefilled += ids.length
    const step: StepSequence = { slot: lease.slot, position, ids, pages: lease.pages, counts: this.#counts, rows: none }
    if (this.prefilling) return step
    this.issued += 1
    const start = { thinking: thinking?.opened ?? false, budget: thinking?.budget ?? -1 }
    return { ...step, rows: [ids.length - 1], sampling: { ...this.#sampling, start } }
  }

  decode(lease: Lease): StepSequence {
    const position = this.request.prompt.length + this.issued - 1
    this.issued += 1
    return {
      slot: lease.slot,
      position,
      ids: undefined,
      pages: lease.pages,
      counts: this.#counts,
      rows: [0],
      sampling: this.#sampling,
    }
  }

  /** `prefilled` tokens of the prompt are computed. */
  progress(prefilled: number): void {
    if (prefilled === this.#reported) return
    this.#reported = prefilled
    this.request.onPrefill?.(prefilled, this.request.prompt.length)
  }

  /** Takes one sampled token. Ends the sequence on a stop id, on the caller's word, or at maxTokens. */
  receive(event: TokenEvent): void {
    this.#received += 1
    if (this.#received === 1) this.#firstToken = performance.now()
    const answer = this.request.onToken(event)
    if (event.stop || answer === 'stop') this.finish('stop')
    else if (this.#received === this.request.maxTokens) this.finish('length')
  }

  finish(reason: EngineOutcome['reason']): void {
    this.done = true
    const now = performance.now()
    this.#resolve({
      reason,
      timings: {
        queueMs: this.#admitted - this.#queued,
        prefillMs: this.#firstToken - this.#admitted,
        decodeMs: now - this.#firstToken,
      },
    })
  }

  fail(reason: unknown): void {
    this.done = true
    this.#reject(reason)
  }
}
