import { forget, watch } from './disposal.js'
import { type Handle, native } from './native.js'
import type { Stream } from './stream.js'

/** Cuts short a launched step: polled between ops, and between slices of long ones. Does not poison the stream. */
export class CancelFlag {
  /** @internal */
  readonly handle: Handle<'cancel flag'> = native().createCancelFlag()

  cancel(): void {
    native().cancel(this.handle)
  }
}

/** A captured list of ops. Everything that it uses stays alive with it. */
export class Graph {
  readonly stream: Stream
  readonly #handle: Handle<'graph'>

  /** @internal Use `stream.capture`. */
  constructor(stream: Stream, handle: Handle<'graph'>) {
    this.stream = stream
    this.#handle = handle
    watch(this, 'Graph')
  }

  /**
   * Replays the ops on one packed StepInput, which is copied before this returns. Resolves with the bytes of the graph's
   * result (its first `rows` rows when it was captured so), or with `null` when `cancel` cut it short.
   * Rejects with DISPOSED, or with the error that poisoned the stream, now or by the time the step comes up.
   * @throws RequestError INVALID_OPTION inside a capture
   */
  launch(input: ArrayBufferView, cancel?: CancelFlag): Promise<Uint8Array | null> {
    this.stream.refuseInCapture('a graph cannot be launched during capture: launch it afterwards')
    return this.#launch(input, cancel)
  }

  async #launch(input: ArrayBufferView, cancel: CancelFlag | undefined): Promise<Uint8Array | null> {
    return native().launch(this.stream.handle, this.#handle, input, cancel?.handle)
  }

  /** Kernels of a launch on a GPU, known after the first one; 0 on the CPU. */
  get kernels(): number {
    return native().graphKernels(this.#handle)
  }

  dispose(): void {
    native().disposeGraph(this.#handle)
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
