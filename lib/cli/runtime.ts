import type { BenchOptions, BenchResult } from '../bench/bench.js'
import type { Checkpoint } from '../checkpoint/checkpoint.js'
import type { LocatedBinding } from '../core/binding.js'
import type { ChatOptions, ChatStream, GenerateOptions } from '../generate/index.js'
import type { LoadOptions } from '../load-options.js'
import type { MemoryNeeded } from '../models/memory.js'
import type { WriteSyntheticOptions } from '../synthetic/write.js'
import type { Message } from '../text/messages.js'
import { packageVersion } from '../version.js'

/** The part of `Model` that the command line uses. */
export interface CliModel {
  readonly info: { readonly name: string }
  chat(input: string | readonly Message[], options?: ChatOptions): ChatStream
  complete(prompt: string, options?: GenerateOptions): ChatStream
  score(
    ids: ArrayLike<number>,
    options?: { last?: number; signal?: AbortSignal },
  ): Promise<{ argmax: Int32Array; logits: Float32Array[] }>
  dispose(): Promise<void>
}

/** The options of `quantizeCheckpoint()` that the command line sets. */
export interface CliQuantizeOptions {
  format: 'nvfp4'
  force: boolean
  signal: AbortSignal
  onProgress: (progress: { loaded: number; total: number }) => void
}

/** Everything that commands take from the rest of the package: the one seam at which tests put a fake model. */
export interface Runtime {
  readonly version: string
  loadModel(name: string, options: LoadOptions): Promise<CliModel>
  /** The folder of a model name; rejects with `MODEL_NOT_FOUND`, listing what was tried. */
  resolveModel(name: string): Promise<string>
  openCheckpoint(folder: string, signal: AbortSignal): Promise<Checkpoint>
  /** Bytes that loading would take. */
  memoryNeeded(
    checkpoint: Checkpoint,
    options: { maxBatch: number; contextLength: number; kvCache: 'fp8' | 'bf16'; exact: boolean },
  ): Promise<MemoryNeeded>
  quantize(folder: string, out: string, options: CliQuantizeOptions): Promise<unknown>
  bench(name: string, options: BenchOptions): Promise<BenchResult>
  /** Writes a synthetic checkpoint as a folder of files. */
  synthesize(preset: string, out: string, options: WriteSyntheticOptions): Promise<unknown>
  /** Finds and loads the addon; throws `NO_BINARY` or `ABI_MISMATCH`. */
  locateBinding(): Promise<LocatedBinding>
}

/** The package itself. Each part is imported when a command first needs it, so that `--help` and `doctor` need no addon. */
export const packageRuntime: Runtime = {
  version: packageVersion,
  loadModel: async (name, options) => (await import('../load-model.js')).loadModel(name, options),
  resolveModel: async (name) => (await import('../resolve-model.js')).resolveModel(name),
  openCheckpoint: async (folder, signal) =>
    (await import('../checkpoint/checkpoint.js')).Checkpoint.open(folder, { signal }),
  memoryNeeded: async (checkpoint, options) => (await import('../models/memory.js')).memoryNeeded(checkpoint, options),
  quantize: async (folder, out, options) =>
    (await import('../quantize/quantize.js')).quantizeCheckpoint(folder, out, options),
  bench: async (name, options) => (await import('../bench/bench.js')).bench(name, options),
  synthesize: async (preset, out, options) =>
    (await import('../synthetic/write.js')).writeSynthetic(preset, out, options),
  locateBinding: async () => (await import('../core/binding.js')).locateBinding(),
}
