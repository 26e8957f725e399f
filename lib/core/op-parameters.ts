import type { FileTensor } from './mapped-file.js'
import type { Tensor } from './tensor.js'
import type { Weight } from './weight.js'

/** One part of a weight, in a file. */
export interface WeightPart {
  /** Default 0. */
  matrix?: number
  /** Default 0. */
  firstRow?: number
  rows: number
  elements: FileTensor
  blockScales?: FileTensor | undefined
  rowScales?: FileTensor | undefined
  /** Float32 multiplier of every row without a row scale. Default 1. */
  scale?: number
  /** Activation scale, multiplier form. */
  inputScale?: number | undefined
}

export interface LinearOptions {
  /** RMSNorm weight of x, f32 [in]. */
  norm?: Tensor | undefined
  epsilon?: number
  bias?: Tensor | undefined
  /** Residual, f32 [tokens, out]: added to in place and returned. */
  add?: Tensor
  activation?: 'relu2'
  /** Compute only the rows that the step wants logits of, at most this many. The result is f32. */
  rows?: number
  /** W4A4: quantise the input to NVFP4 with the weight's input scale. */
  quantizeInput?: boolean
}

export interface MambaParameters {
  groups: number
  epsilon: number
  /** f32 [channels, kernel] */
  convWeight: Tensor
  /** f32 [channels] */
  convBias?: Tensor | undefined
  /** f32 [heads], each */
  dtBias: Tensor
  aLog: Tensor
  d: Tensor
  /** f32 [inner] */
  norm: Tensor
}

/** One layer's Mamba state of all slots. */
export interface MambaState {
  /** activation dtype [slots, channels, kernel - 1] */
  conv: Tensor
  /** f32 [slots, heads, headDim, state] */
  ssm: Tensor
}

export interface AttentionParameters {
  heads: number
  /** Scales of an e4m3 cache. */
  kScale: number
  vScale: number
}

export interface MoeParameters {
  norm: Tensor
  epsilon: number
  /** f32 [experts, hidden] */
  router: Tensor
  /** f32 [experts] */
  bias: Tensor
  up: Weight
  down: Weight
  sharedUp?: Weight | undefined
  sharedDown?: Weight | undefined
  upBias?: Tensor | undefined
  downBias?: Tensor | undefined
  sharedUpBias?: Tensor | undefined
  sharedDownBias?: Tensor | undefined
  topK: number
  groups: number
  topkGroups: number
  normalize: boolean
  scale: number
}

/** Token state and counts of all slots, for `sample`. */
export interface SamplingState {
  /** i32 [slots, 8] */
  slots: Tensor
  /** u8 [slots, vocabulary] */
  seen: Tensor
  /** u32 [slots, vocabulary] */
  counts: Tensor
}

/** Bytes of one row of the results of `sample`: `struct Result` of kernels/step.h. */
export const resultBytes = 176
