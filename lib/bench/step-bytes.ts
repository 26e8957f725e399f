import { cacheBytes } from '../cache/model-cache.js'
import type { TensorRef } from '../checkpoint/checkpoint.js'
import { dtypeBytes } from '../checkpoint/safetensors.js'
import { cacheShape } from '../engine/model-runner.js'
import type { NemotronHConfig } from '../models/config.js'

const experts = /\.mixer\.(experts|shared_experts)\./
const embeddings = /(^|\.)embeddings\.weight$/

/** Bytes of weights that every step reads whatever its tokens: all but embeddings and experts. Vectors are kept in float32. */
export function denseBytes(tensors: Iterable<TensorRef>): number {
  let bytes = 0
  for (const { name, shape, dtype, bytes: stored } of tensors) {
    if (experts.test(name) || embeddings.test(name)) continue
    const widened = shape.length !== 2 && shape.length > 0 && dtype !== 'U8'
    bytes += widened ? (stored / dtypeBytes[dtype]) * dtypeBytes.F32 : stored
  }
  return bytes
}

/**
 * Bytes of state that one sequence's decode step touches: its embedding row, Mamba state read and written, and the attention
 * pages up to `position`.
 */
export function sequenceBytes(
  config: NemotronHConfig,
  options: { position: number; kvCache: 'fp8' | 'bf16'; exact: boolean },
): number {
  const { position, ...rest } = options
  const one = cacheBytes(config, { ...cacheShape({ ...rest, maxBatch: 0, contextLength: position }), slots: 1 })
  return 2 * config.hiddenSize + 2 * one.mamba + one.attention
}
