import { type Code, DeviceError, ModelError, NibbletError, RequestError, StateError } from '../errors.js'
import { loadBinding, type VersionedBinding } from './binding.js'

declare const handle: unique symbol
/** An opaque native object. */
export interface Handle<Noun extends string> {
  readonly [handle]: Noun
}

export type DTypeName = 'f32' | 'bf16' | 'f16' | 'e4m3' | 'u8' | 'i32' | 'u32'
/** `[buffer, offset, dtype, ...shape]` */
export type NativeTensor = readonly [Handle<'buffer'>, number, DTypeName, ...number[]]
/** `[file, offset, dtype, name]` */
export type NativeFileTensor = readonly [Handle<'file'>, number, DTypeName, string]

/** `enum class Draw` of kernels/synthetic/draw.h */
export type NativeDraw = 'pairs' | 'bytes' | 'halves' | 'words'

export interface OpSchema {
  readonly name: string
  readonly operands: readonly { name: string; kind: 'tensor' | 'weight'; optional: boolean }[]
  readonly attributes: readonly string[]
}

export interface NativeWeightPart {
  matrix: number
  firstRow: number
  rows: number
  elements: NativeFileTensor
  blockScales: NativeFileTensor | undefined
  rowScales: NativeFileTensor | undefined
  scale: number
  inputScale: number
}

/** The addon's exports, as native/addon defines them. */
export interface NativeBinding extends VersionedBinding {
  initialize(makeError: (code: Code, message: string, op: string) => Error): void
  openDevice(name: string): Handle<'device'>
  deviceMemory(device: Handle<'device'>): { allocated: number; available: number }
  /** What the maker calls it. */
  deviceModel(device: Handle<'device'>): string
  cudaDevices(): number
  physicalCores(): number
  cpuVariant(): string
  createBuffer(device: Handle<'device'>, bytes: number): Handle<'buffer'>
  disposeBuffer(buffer: Handle<'buffer'>): void
  createWeight(
    device: Handle<'device'>,
    format: string,
    layout: string,
    matrices: number,
    out: number,
    inputs: number,
  ): Handle<'weight'>
  weightStorage(weight: Handle<'weight'>): { bytes: number; compact: boolean; exceptions: number }
  disposeWeight(weight: Handle<'weight'>): void
  mapFile(path: string): Handle<'file'>
  createSyntheticFile(
    path: string,
    tables: readonly (readonly [draw: NativeDraw, alternate: boolean, entries: Uint8Array])[],
    regions: Float64Array,
    seeds: BigUint64Array,
  ): Handle<'file'>
  disposeFile(file: Handle<'file'>): void
  opTable(): OpSchema[]
  createStream(device: Handle<'device'>, threads: number): Handle<'stream'>
  closeStream(stream: Handle<'stream'>): void
  enqueue(
    stream: Handle<'stream'>,
    op: number,
    operands: readonly (NativeTensor | Handle<'weight'> | undefined)[],
    attributes: readonly number[],
  ): void
  loadTensor(stream: Handle<'stream'>, to: NativeTensor, from: NativeFileTensor): void
  loadWeight(stream: Handle<'stream'>, to: Handle<'weight'>, parts: readonly NativeWeightPart[]): void
  compactWeight(stream: Handle<'stream'>, weight: Handle<'weight'>): void
  write(stream: Handle<'stream'>, to: NativeTensor, data: ArrayBufferView): void
  measureRead(stream: Handle<'stream'>, source: NativeTensor, seconds: NativeTensor, times: number): void
  read(stream: Handle<'stream'>, from: NativeTensor): Promise<Uint8Array>
  sync(stream: Handle<'stream'>): Promise<void>
  step(stream: Handle<'stream'>, input: ArrayBufferView): void
  beginCapture(stream: Handle<'stream'>): void
  endCapture(stream: Handle<'stream'>, result: NativeTensor | undefined, resultRows: boolean): Handle<'graph'>
  abandonCapture(stream: Handle<'stream'>): void
  disposeGraph(graph: Handle<'graph'>): void
  graphKernels(graph: Handle<'graph'>): number
  timeGaps(stream: Handle<'stream'>, on: boolean): Float32Array
  launch(
    stream: Handle<'stream'>,
    graph: Handle<'graph'>,
    input: ArrayBufferView,
    cancel: Handle<'cancel flag'> | undefined,
  ): Promise<Uint8Array | null>
  createCancelFlag(): Handle<'cancel flag'>
  cancel(flag: Handle<'cancel flag'>): void
}

/** The typed error for a code that native code threw. */
function makeError(code: Code, message: string, op: string): Error {
  const options = op === '' ? {} : { details: { op } }
  switch (code) {
    case 'NO_DEVICE':
    case 'OUT_OF_MEMORY':
    case 'OP_FAILED':
    case 'STREAM_FAILED':
      return new DeviceError(code, message, options)
    case 'BAD_FORMAT':
      return new ModelError(code, message, options)
    case 'INVALID_OPTION':
      return new RequestError(code, message, options)
    case 'DISPOSED':
      return new StateError(code, message, options)
    default:
      return new NibbletError(code, message, options)
  }
}

let initialized: NativeBinding | undefined

/** The addon, loaded and initialised at the first call. Throws BindingError when there is none. */
export function native(): NativeBinding {
  if (initialized === undefined) {
    const binding = loadBinding<NativeBinding>()
    binding.initialize(makeError)
    initialized = binding
  }
  return initialized
}
