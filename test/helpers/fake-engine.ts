import type { Engine, EngineOutcome, EngineRequest } from '../../lib/engine/types.js'

/** One scripted run: the tokens that the "model" would sample, or an error that it fails with after them. */
export interface Script {
  ids: readonly number[]
  /** Rejects with this once `ids` have been sampled. */
  error?: unknown
  /** Waits for an abort once `ids` have been sampled, instead of sampling a stop id. */
  hang?: boolean
}

/**
 * An engine that samples scripted tokens, one a turn of the event loop, and keeps to the contract of `Engine`: stop ids,
 * maxTokens, the thinking budget, `onToken`'s 'stop', and `signal.reason` on abort before each token.
 */
export class FakeEngine implements Engine {
  readonly requests: EngineRequest[] = []
  /** Tokens sampled so far, over all runs. */
  sampled = 0
  running = 0
  readonly #scripts: Script[]

  constructor(...scripts: Script[]) {
    this.#scripts = scripts
  }

  async run(request: EngineRequest): Promise<EngineOutcome> {
    const script = this.#scripts[this.requests.length]
    this.requests.push(request)
    if (script === undefined) throw new Error('the fake engine has no script for this request')
    this.running++
    try {
      return { reason: await this.#sample(request, script), timings: { queueMs: 1, prefillMs: 2, decodeMs: 10 } }
    } finally {
      this.running--
    }
  }

  async #sample(request: EngineRequest, script: Script): Promise<'stop' | 'length'> {
    const { thinking, signal, stopIds, logprobs } = request
    const queue = script.ids.map((id) => ({ id, forced: false }))
    let budget = thinking?.opened && thinking.budget >= 0 ? thinking.budget : Number.POSITIVE_INFINITY
    for (let count = 0; ; ) {
      await new Promise((resolve) => setImmediate(resolve))
      signal?.throwIfAborted()
      if (budget === 0) {
        budget = Number.POSITIVE_INFINITY
        const end = queue.findIndex(({ id }) => thinking?.endIds.includes(id))
        queue.splice(0, end + 1, ...(thinking?.forcedIds ?? []).map((id) => ({ id, forced: true })))
      }
      const next = queue.shift()
      if (next === undefined && script.error !== undefined) throw script.error
      if (next === undefined && script.hang) {
        await new Promise((resolve) => signal?.addEventListener('abort', resolve, { once: true }))
        signal?.throwIfAborted()
      }
      const { id, forced } = next ?? { id: stopIds[0] ?? 0, forced: false }
      this.sampled++
      count++
      if (thinking?.endIds.includes(id)) budget = Number.POSITIVE_INFINITY
      else budget--
      const stop = stopIds.includes(id)
      const scores =
        logprobs === undefined
          ? {}
          : { logprob: -0.5, top: Array.from({ length: logprobs }, (_, i) => ({ id: id + i, logprob: -0.5 - i })) }
      const verdict = request.onToken({ id, stop, forced, ...scores })
      if (stop || verdict === 'stop') return 'stop'
      if (count >= request.maxTokens) return 'length'
    }
  }
}
