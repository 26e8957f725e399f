import type { Stream } from '../core/stream.js'

/**
 * The steps of a load, one more of which is enqueued while the one before is done: a stream that waits for the next step reads
 * nothing meanwhile. Errors come out of the next call.
 */
export class LoadSteps {
  readonly #stream: Stream
  readonly #onStep: (bytes: number) => void
  #last: Promise<void> | undefined

  /** @param onStep Called with what `add` was given, once everything enqueued before is loaded. May throw. */
  constructor(stream: Stream, onStep: (bytes: number) => void) {
    this.#stream = stream
    this.#onStep = onStep
  }

  /** Ends a step; resolves when the step before it is done. */
  async add(bytes: number): Promise<void> {
    const before = this.#last
    this.#last = this.#stream.sync().then(() => this.#onStep(bytes))
    // Whoever gives up before the next call has another error to report.
    this.#last.catch(() => undefined)
    await before
  }

  /** Resolves when all steps are done. */
  async done(): Promise<void> {
    await this.#last
  }
}
