import { resultBytes } from '../core/op-parameters.js'
import type { TokenEvent } from './types.js'

// The layout of `struct Result` of kernels/step.h, in 32-bit words.
const topLogprobs = 20
const sampledFlag = 1
const stoppedFlag = 2
const forcedFlag = 4

/** The rows that `sample` reported, in the order of the step's rows. */
export class Results {
  readonly #view: DataView

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** Row `index`, or undefined when its sequence had already stopped. */
  token(index: number, logprobs: number | undefined): TokenEvent | undefined {
    const view = this.#view
    const at = index * resultBytes
    const flags = view.getUint32(at + 4, true)
    if ((flags & sampledFlag) === 0) return undefined
    const event: TokenEvent = {
      id: view.getInt32(at, true),
      stop: (flags & stoppedFlag) !== 0,
      forced: (flags & forcedFlag) !== 0,
    }
    if (logprobs === undefined) return event
    const ids = at + 16
    const values = ids + 4 * topLogprobs
    event.logprob = view.getFloat32(at + 8, true)
    event.top = Array.from({ length: view.getInt32(at + 12, true) }, (_, rank) => ({
      id: view.getInt32(ids + 4 * rank, true),
      logprob: view.getFloat32(values + 4 * rank, true),
    }))
    return event
  }
}
