import type { Timings, Usage } from './reply.js'
import type { Round } from './round.js'

/** Sums usage and timings over the rounds of one chat. */
export class Totals {
  readonly #usage: Usage = { inputTokens: 0, cachedInputTokens: 0, outputTokens: 0, reasoningTokens: 0 }
  readonly #milliseconds = { queueMs: 0, prefillMs: 0, decodeMs: 0 }
  /** Output tokens that `decodeMs` covers: in each round all but the first, which prefill gives. */
  #decoded = 0

  add({ collected, inputTokens, timings }: Round): void {
    const outputTokens = collected.ids.length
    this.#usage.inputTokens += inputTokens
    this.#usage.outputTokens += outputTokens
    this.#usage.reasoningTokens += collected.reasoningTokens
    this.#milliseconds.queueMs += timings.queueMs
    this.#milliseconds.prefillMs += timings.prefillMs
    this.#milliseconds.decodeMs += timings.decodeMs
    this.#decoded += Math.max(0, outputTokens - 1)
  }

  get usage(): Usage {
    return { ...this.#usage }
  }

  get timings(): Timings {
    const { decodeMs } = this.#milliseconds
    return { ...this.#milliseconds, tokensPerSecond: decodeMs > 0 ? (this.#decoded * 1000) / decodeMs : 0 }
  }
}
