import type { Buffer } from '../core/buffer.js'
import type { Device } from '../core/device.js'
import type { MambaState } from '../core/op-parameters.js'
import { type DType, dtypeBytes, type Tensor } from '../core/tensor.js'
import type { NemotronHConfig } from '../models/config.js'
import type { LayerCaches } from '../models/nemotron-h.js'

/** Tokens in one page of the KV cache: kPageTokens of kernels/step.h. */
export const pageTokens = 64

export interface CacheShape {
  /** Sequences that can be live at once. */
  slots: number
  /** KV pages, shared by all sequences. */
  pages: number
  /** Storage of keys and values. */
  kv: 'f32' | 'bf16' | 'e4m3'
  /** Storage of the convolution tail: the activation dtype. */
  activation: DType
}

function product(dtype: DType, shape: readonly number[]): number {
  return shape.reduce((bytes, extent) => bytes * extent, dtypeBytes[dtype])
}

function align(bytes: number): number {
  return Math.ceil(bytes / 64) * 64
}

function shapes(config: NemotronHConfig, { slots, pages }: CacheShape) {
  const { heads, headDim, groups, stateSize, convKernel } = config.mamba
  const channels = heads * headDim + 2 * groups * stateSize
  return {
    conv: [slots, channels, convKernel - 1],
    ssm: [slots, heads, headDim, stateSize],
    kv: [pages, 2, config.attention.kvHeads, pageTokens, config.attention.headDim],
  }
}

/** Bytes of attention pages and Mamba state for a model. */
export function cacheBytes(config: NemotronHConfig, cache: CacheShape): { attention: number; mamba: number } {
  const { conv, ssm, kv } = shapes(config, cache)
  const count = (kind: string) => config.layers.filter((layer) => layer === kind).length
  return {
    attention: count('attention') * align(product(cache.kv, kv)),
    mamba: count('mamba') * (align(product(cache.activation, conv)) + align(product('f32', ssm))),
  }
}

/** Attention pages and Mamba states of every layer, in one buffer each. */
export class ModelCache implements LayerCaches {
  readonly bytes: number
  readonly #mamba = new Map<number, MambaState>()
  readonly #attention = new Map<number, Tensor>()
  readonly #buffers: Buffer[]

  constructor(device: Device, config: NemotronHConfig, cache: CacheShape) {
    const bytes = cacheBytes(config, cache)
    const { conv, ssm, kv } = shapes(config, cache)
    const states = device.buffer(bytes.mamba)
    let pages: Buffer
    try {
      pages = device.buffer(bytes.attention)
    } catch (error) {
      states.dispose()
      throw error
    }
    this.#buffers = [states, pages]
    this.bytes = bytes.mamba + bytes.attention
    let stateOffset = 0
    let pageOffset = 0
    for (const [index, kind] of config.layers.entries()) {
      if (kind === 'mamba') {
        const convState = states.tensor(cache.activation, conv, stateOffset)
        stateOffset = align(stateOffset + convState.bytes)
        const ssmState = states.tensor('f32', ssm, stateOffset)
        stateOffset = align(stateOffset + ssmState.bytes)
        this.#mamba.set(index, { conv: convState, ssm: ssmState })
      } else if (kind === 'attention') {
        const tensor = pages.tensor(cache.kv, kv, pageOffset)
        pageOffset = align(pageOffset + tensor.bytes)
        this.#attention.set(index, tensor)
      }
    }
  }

  mamba(index: number): MambaState {
    return found(this.#mamba.get(index), index, 'Mamba')
  }

  attention(index: number): Tensor {
    return found(this.#attention.get(index), index, 'attention')
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.dispose()
  }
}

function found<T>(value: T | undefined, index: number, kind: string): T {
  if (value === undefined) throw new RangeError(`layer ${index} is no ${kind} layer`)
  return value
}
