import { RequestError } from '../errors.js'
import { Arena } from './arena.js'
import { Device } from './device.js'
import { forget, watch } from './disposal.js'
import { Graph } from './graph.js'
import type { FileTensor } from './mapped-file.js'
import { type Handle, type NativeFileTensor, type NativeWeightPart, native } from './native.js'
import {
  type AttentionParameters,
  type LinearOptions,
  type MambaParameters,
  type MambaState,
  type MoeParameters,
  resultBytes,
  type SamplingState,
  type WeightPart,
} from './op-parameters.js'
import { enqueueOp, type Operands } from './op-table.js'
import type { DType, Tensor } from './tensor.js'
import type { Weight } from './weight.js'

export interface StreamOptions {
  /** CPU threads, 1 to 1024. Default: the physical cores. */
  threads?: number
  /** Reference kernels alone, with float32 activations. Default false. */
  exact?: boolean
}

/**
 * An ordered queue of ops on a device, drained by the device's engine thread. An op call checks its arguments, enqueues and
 * returns the tensor that it will fill; nothing is computed on the calling thread. Temporaries come from the stream's arena
 * and live until the surrounding `scope` ends.
 *
 * @example
 * const graph = stream.capture(() => model.forward(stream, batch))
 * const logits = await graph.launch(input)
 */
export class Stream {
  readonly device: Device
  readonly threads: number
  readonly exact: boolean
  /** @internal */
  readonly handle: Handle<'stream'>
  readonly #arena: Arena
  #capturing = false

  /** @internal Use `device.stream`. */
  constructor(device: Device, options: StreamOptions) {
    this.device = device
    this.threads = options.threads ?? Device.physicalCores()
    this.exact = options.exact ?? false
    this.handle = native().createStream(device.handle, this.threads)
    const handle = this.handle
    try {
      this.#arena = new Arena(device)
    } catch (error) {
      native().closeStream(handle)
      throw error
    }
    watch(this, 'Stream', () => native().closeStream(handle))
  }

  /** What activations are kept in: f32 in exact mode, otherwise bf16. */
  get activation(): DType {
    return this.exact ? 'f32' : 'bf16'
  }

  /** Bytes of the arena of temporaries. */
  get arenaBytes(): number {
    return this.#arena.bytes
  }

  /** Row `id` of the table for every token of the step: f32 [tokens, hidden]. */
  embed(table: Tensor, tokens: number, slots?: Tensor): Tensor {
    const y = this.#arena.tensor('f32', [tokens, table.size(1)])
    this.#enqueue('embed', { slots, table, y })
    return y
  }

  /** `activation(norm(x) Wᵀ + bias)` in the activation dtype (f32 with `rows`), or `add` plus that. */
  linear(x: Tensor, weight: Weight, options: LinearOptions = {}): Tensor {
    const { norm, bias, add, rows, epsilon = 0 } = options
    const dtype = rows === undefined ? this.activation : 'f32'
    const y = add ?? this.#arena.tensor(dtype, [rows ?? x.size(0), weight.out])
    this.#enqueue(
      'linear',
      { x, weight, norm, bias, y },
      {
        epsilon,
        exact: this.exact,
        add: add !== undefined,
        relu2: options.activation === 'relu2',
        rows: rows !== undefined,
        quantizeInput: options.quantizeInput ?? false,
      },
    )
    return y
  }

  /** The Mamba-2 mixer between its projections: [tokens, inner] in the activation dtype. */
  mamba(projected: Tensor, parameters: MambaParameters, state: MambaState, slots: Tensor): Tensor {
    const { groups, epsilon, ...tensors } = parameters
    const y = this.#arena.tensor(this.activation, [projected.size(0), tensors.norm.size(0)])
    const operands = { slots, projected, ...tensors, convState: state.conv, ssmState: state.ssm, y }
    this.#enqueue('mamba', operands, { groups, epsilon, exact: this.exact })
    return y
  }

  /** Appends to the paged cache and attends: [tokens, heads · headDim] in the activation dtype. */
  attention(qkv: Tensor, parameters: AttentionParameters, cache: Tensor, slots: Tensor): Tensor {
    const y = this.#arena.tensor(this.activation, [qkv.size(0), parameters.heads * cache.size(-1)])
    this.#enqueue('attention', { slots, qkv, cache, y }, { ...parameters, exact: this.exact })
    return y
  }

  /**
   * A mixture-of-experts layer with its norm and residual: adds to x in place and returns it. With `statistics`, u32
   * [2 · (3 + experts)], each launch adds to 64-bit counters: hidden activations, zeros among them, bytes of expert weights
   * read, and the tokens of every expert. Counting takes time: leave it out of what is measured.
   */
  moe(x: Tensor, parameters: MoeParameters, statistics?: Tensor): Tensor {
    const { epsilon, topK, groups, topkGroups, normalize, scale, ...operands } = parameters
    const attributes = { epsilon, exact: this.exact, topK, groups, topkGroups, normalize, scale }
    this.#enqueue('moe', { x, ...operands, statistics }, attributes)
    return x
  }

  /** Samples every row of logits f32 [rows, vocabulary], which it overwrites: u8 [rows, resultBytes]. */
  sample(logits: Tensor, state: SamplingState): Tensor {
    const results = this.#arena.tensor('u8', [logits.size(0), resultBytes])
    this.#enqueue('sample', { logits, ...state, results })
    return results
  }

  /** Quantises w (f32 or bf16 [rows, columns]) to NVFP4 codes, block scales and the scale of the whole matrix. */
  quantize(w: Tensor, to: { codes: Tensor; blockScales: Tensor; global: Tensor }): void {
    this.#enqueue('quantize', { w, ...to })
  }

  /** Loads a whole tensor from a file: same dtype bit for bit, or f16 and bf16 widened to f32. */
  loadTensor(to: Tensor, from: FileTensor): void {
    if (this.#arena.measuring) return
    native().loadTensor(this.handle, to.pack(), packFileTensor(from))
  }

  /**
   * Packs parts of a weight. Many parts in one call load faster on a GPU than one at a time. A NaN or negative scale fails with
   * BAD_FORMAT naming tensor and file.
   */
  loadWeight(to: Weight, parts: WeightPart | readonly WeightPart[]): void {
    if (this.#arena.measuring) return
    const list: readonly WeightPart[] = 'rows' in parts ? [parts] : parts
    native().loadWeight(this.handle, to.handle, list.map(packWeightPart))
  }

  /**
   * Stores a bf16 matrix in fragments or panels, all of whose parts are loaded before, in 12 bits an element: exactly, with what
   * does not fit stored apart. The weight stays as it is (`Weight.exceptions` tells) with more than one such exception in 512
   * elements or, on a GPU, 64 in a row, with more than 65,536 inputs, where less than a sixth is saved, without memory for both
   * copies, on a CPU without AVX-512, and on a GPU with so many rows (about a million) that 16 bytes for each exceed 16 MiB. Ops
   * may use the weight after `sync`.
   * Parts that this stream loads may still be under way. Those of another must be done: the stream fails with INVALID_OPTION.
   * @throws RequestError INVALID_OPTION for other weights, and for one that an op was given already
   */
  compactWeight(weight: Weight): void {
    this.refuseInCapture('a weight cannot be made compact during capture: do it before')
    if (this.#arena.measuring) return
    native().compactWeight(this.handle, weight.handle)
  }

  /** Writes bytes to a tensor in stream order; they are copied before this returns. */
  write(to: Tensor, data: ArrayBufferView): void {
    if (this.#arena.measuring) return
    native().write(this.handle, to.pack(), data)
  }

  /**
   * Reads all of `source` (a multiple of 512 bytes) `times` times with the stream's threads, as fast as they can, and leaves the
   * seconds of the fastest time in `seconds`, f32 [1].
   */
  measureRead(source: Tensor, seconds: Tensor, times: number): void {
    native().measureRead(this.handle, source.pack(), seconds.pack(), times)
  }

  /**
   * Whether launches from here on are timed. Returns what was found since the last call, oldest first: microseconds that a GPU
   * had no graph to run between two launches that follow one another. Empty on the CPU.
   */
  timeGaps(on: boolean): Float32Array {
    return native().timeGaps(this.handle, on)
  }

  /** The bytes of a tensor once everything enqueued so far has run. */
  async read(from: Tensor): Promise<Uint8Array> {
    return native().read(this.handle, from.pack())
  }

  /** Resolves when everything enqueued so far has run; rejects with the error that poisoned the stream. */
  async sync(): Promise<void> {
    return native().sync(this.handle)
  }

  /** Makes a packed StepInput the step of ops enqueued after it outside a graph. */
  step(input: ArrayBufferView): void {
    this.refuseInCapture('a step cannot be set during capture: pass it to launch')
    native().step(this.handle, input)
  }

  /**
   * Records the ops that `body` enqueues; the tensor that it returns is what each launch reports (with `rows`, only as many
   * leading rows as the step has logits rows). `body` runs more than once, first dry, to size the temporaries.
   * @throws RequestError INVALID_OPTION when `body` returns a promise or captures
   */
  capture(body: () => Tensor | undefined, options: { rows?: boolean } = {}): Graph {
    if (this.#capturing) {
      throw new RequestError('INVALID_OPTION', 'capture is already under way on this stream; captures do not nest')
    }
    this.#capturing = true
    try {
      this.#arena.fit(() => checkSynchronous(body()))
      // Once for the native scratch to reach its final size, so that all ops of the graph share it.
      this.#record(body, () => native().abandonCapture(this.handle))
      return this.#record(body, (result) => {
        return new Graph(this, native().endCapture(this.handle, result?.pack(), options.rows ?? false))
      })
    } finally {
      this.#capturing = false
    }
  }

  /** @internal Throws INVALID_OPTION with this message inside `capture`, its dry run included. */
  refuseInCapture(message: string): void {
    if (this.#capturing) throw new RequestError('INVALID_OPTION', message)
  }

  /** Releases the temporaries that `body` made when it returns. */
  scope<T>(body: () => T): T {
    return this.#arena.scope(body)
  }

  /** Makes the arena large enough for `body`, without enqueueing anything. `capture` does so by itself. */
  fit(body: () => void): void {
    this.#arena.fit(body)
  }

  /** Stops what runs, rejects what waits, frees the temporaries. Idempotent. */
  dispose(): void {
    native().closeStream(this.handle)
    this.#arena.dispose()
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #record<T>(body: () => Tensor | undefined, end: (result: Tensor | undefined) => T): T {
    native().beginCapture(this.handle)
    try {
      return this.#arena.scope(() => {
        const result = body()
        checkSynchronous(result)
        return end(result)
      })
    } catch (error) {
      native().abandonCapture(this.handle)
      throw error
    }
  }

  #enqueue(op: string, operands: Operands, attributes: Record<string, number | boolean> = {}): void {
    if (!this.#arena.measuring) enqueueOp(this.handle, op, operands, attributes)
  }
}

function checkSynchronous(result: unknown): void {
  if (!(result instanceof Promise)) return
  // It may fail later, unnoticed by whoever caught the error below.
  result.catch(() => {})
  throw new RequestError('INVALID_OPTION', 'capture needs a synchronous function, got one that returns a promise')
}

function packFileTensor(tensor: FileTensor): NativeFileTensor {
  return [tensor.file.handle, tensor.offset, tensor.dtype, tensor.name]
}

function packWeightPart(part: WeightPart): NativeWeightPart {
  return {
    matrix: part.matrix ?? 0,
    firstRow: part.firstRow ?? 0,
    rows: part.rows,
    elements: packFileTensor(part.elements),
    blockScales: part.blockScales && packFileTensor(part.blockScales),
    rowScales: part.rowScales && packFileTensor(part.rowScales),
    scale: part.scale ?? 1,
    inputScale: part.inputScale ?? 0,
  }
}
