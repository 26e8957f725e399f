import { cacheBytes } from '../cache/model-cache.js'
import type { Checkpoint } from '../checkpoint/checkpoint.js'
import { cacheShape, samplingBytes } from '../engine/model-runner.js'

/** Bytes that loading a checkpoint takes on its device. */
export interface MemoryNeeded {
  weights: number
  cache: number
  total: number
}

/**
 * Weights as they will be packed (float16 widens to float32; rows pad to panels of 16) and caches at their full size. The
 * temporaries of a step, some megabytes, come on top.
 */
export function memoryNeeded(
  checkpoint: Checkpoint,
  options: { maxBatch: number; contextLength: number; kvCache: 'fp8' | 'bf16'; exact: boolean },
): MemoryNeeded {
  let weights = 0
  for (const tensor of checkpoint.tensors.values()) weights += tensor.dtype === 'F16' ? 2 * tensor.bytes : tensor.bytes
  const { config } = checkpoint
  const caches = cacheBytes(config, cacheShape(options))
  const cache = caches.attention + caches.mamba + samplingBytes(config.vocabSize, options.maxBatch + 1)
  return { weights, cache, total: weights + cache }
}
