import type { Stream } from '../lib/core/stream.js'
import type { Weight, WeightFormat } from '../lib/core/weight.js'
import type { StepSequence } from '../lib/engine/step-input.js'
import type { Operands } from './operands.js'
import {
  type Case,
  hidden,
  layoutOf,
  type Make,
  mambaParameters,
  mambaState,
  moeInputs,
  moeParameters,
  prompt,
} from './ops.js'

// Whole layers of Nemotron-3-Nano-30B-A3B in a chain, as a decode step has them: what its ops cost beside one another.

const inner = 4096
const inProjection = 10304
const [heads, kvHeads, headDim] = [32, 2, 128]
const count = 12
const epsilon = 1e-5

/** `batch` sequences of one token at `position`. */
function decoding(batch: number, position: number): StepSequence[] {
  const [first] = prompt(1, position) as [StepSequence]
  const pages = first.pages.length
  return Array.from({ length: batch }, (_, slot) => ({
    ...first,
    slot,
    pages: first.pages.map((page) => page + slot * pages),
  }))
}

type Layers = Pick<Case, 'shape' | 'bytes' | 'calls'>

function layers(
  op: string,
  batch: number,
  position: number,
  make: (stream: Stream, operands: Operands) => Layers,
): Make {
  return (stream, operands) => ({
    op: `${op} layer`,
    sequences: decoding(batch, position),
    flops: 0,
    ...make(stream, operands),
  })
}

function mambaLayer(format: WeightFormat, batch: number): Make {
  return layers('mamba', batch, 100, (stream, operands) => {
    const x = operands.normal('f32', [batch, hidden])
    const norm = operands.normal('f32', [hidden], { mean: 1, deviation: 0 })
    const slots = operands.zeros('i32', [batch, 8])
    const weights = Array.from({ length: count }, () => ({
      inProj: operands.weight(format, layoutOf(stream), inProjection, hidden),
      outProj: operands.weight(format, layoutOf(stream), hidden, inner),
      mixer: mambaParameters(operands),
      state: mambaState(operands, batch),
    }))
    const [{ inProj, outProj, state }] = weights as [(typeof weights)[number]]
    return {
      shape: `${format}, batch ${batch}`,
      bytes: inProj.bytes + outProj.bytes + 2 * state.ssm.bytes,
      calls: weights.map(({ inProj, outProj, mixer, state }) => () => {
        const projected = stream.linear(x, inProj, { norm, epsilon })
        return stream.linear(stream.mamba(projected, mixer, state, slots), outProj, { add: x })
      }),
    }
  })
}

function attentionLayer(batch: number, position: number): Make {
  return layers('attention', batch, position, (stream, operands) => {
    const x = operands.normal('f32', [batch, hidden])
    const norm = operands.normal('f32', [hidden], { mean: 1, deviation: 0 })
    const slots = operands.zeros('i32', [batch, 8])
    const pages = decoding(batch, position).reduce((sum, sequence) => sum + sequence.pages.length, 0)
    const matrix = (out: number, inputs: number): Weight => operands.weight('bf16', layoutOf(stream), out, inputs)
    const weights = Array.from({ length: count }, () => ({
      qkv: matrix((heads + 2 * kvHeads) * headDim, hidden),
      o: matrix(hidden, heads * headDim),
      cache: operands.zeros('e4m3', [pages, 2, kvHeads, 64, headDim]),
    }))
    const [{ qkv, o, cache }] = weights as [(typeof weights)[number]]
    return {
      shape: `bf16, fp8 cache, at ${position}, batch ${batch}`,
      bytes: qkv.bytes + o.bytes + cache.bytes,
      calls: weights.map(({ qkv, o, cache }) => () => {
        const attended = stream.attention(
          stream.linear(x, qkv, { norm, epsilon }),
          { heads, kScale: 1, vScale: 1 },
          cache,
          slots,
        )
        return stream.linear(attended, o, { add: x })
      }),
    }
  })
}

/** The experts that a call leaves in the second-level cache are not those of the next: inputs differ. */
function moeLayer(batch: number): Make {
  return layers('moe', batch, 0, (stream, operands) => {
    const parameters = moeParameters(stream, operands, 0.907)
    const inputs = Array.from({ length: count }, () => moeInputs(operands, batch))
    const touched = 128 * (1 - (1 - 6 / 128) ** batch)
    const { up, sharedUp } = parameters as { up: Weight; sharedUp: Weight }
    return {
      shape: `nvfp4, 90.7 % zeros, batch ${batch} (bytes of up alone)`,
      bytes: (up.bytes * touched) / 128 + sharedUp.bytes,
      calls: inputs.map((x) => () => stream.moe(x, parameters)),
    }
  })
}

export const layerCases: readonly Make[] = [1, 8, 64].flatMap((batch) => [
  mambaLayer('nvfp4', batch),
  mambaLayer('bf16', batch),
  attentionLayer(batch, 100),
  moeLayer(batch),
])
