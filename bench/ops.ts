import { pageTokens } from '../lib/cache/model-cache.js'
import type { MambaParameters, MambaState, MoeParameters } from '../lib/core/op-parameters.js'
import type { Stream } from '../lib/core/stream.js'
import type { Tensor } from '../lib/core/tensor.js'
import type { Weight, WeightFormat, WeightLayout } from '../lib/core/weight.js'
import { StepInput, type StepSequence } from '../lib/engine/step-input.js'
import { normalQuantile } from '../lib/synthetic/tables.js'
import { Operands } from './operands.js'

/** Speed of one op on one shape. */
export interface OpResult {
  op: string
  shape: string
  tokens: number
  microseconds: number
  /** Bytes of weights, state and activations that have to be read or written, each counted once. */
  gigabytesPerSecond: number
  gigaflops: number
  /** Of the memory-read roofline; for ops that compute rather than read it says little. */
  rooflineShare: number
}

/** One shape of one op: several calls on operands of their own, so that none is left in a cache. */
export interface Case {
  readonly op: string
  shape: string
  sequences: readonly StepSequence[]
  /** Per call, once what was enqueued is done. */
  readonly bytes: number
  flops: number
  /** Enqueues call `index`. */
  calls: readonly (() => Tensor | undefined)[]
}

export type Make = (stream: Stream, operands: Operands) => Case

// More than any cache holds that a process may count on.
const coldBytes = 384e6
const bestOf = 5
/** Launches one after another, so that what the host does for one is hidden behind the ones before it. */
const gpuLaunches = 8
// The shapes of Nemotron-3-Nano-30B-A3B.
export const hidden = 2688
const sampling = {
  temperature: 1,
  topP: 0.9,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  topK: 0,
  seed: 1,
  logprobs: -1,
  stopIds: [],
  thinkEndIds: [],
  forcedIds: [],
}

export function prompt(count: number, position = 0): StepSequence[] {
  const pages = Array.from({ length: Math.ceil((position + count) / pageTokens) }, (_, page) => page)
  return [{ slot: 0, position, ids: Uint32Array.from({ length: count }, (_, id) => id), pages, rows: [] }]
}

function copies(bytes: number): number {
  return Math.max(1, Math.min(64, Math.ceil(coldBytes / bytes)))
}

function linear(format: WeightFormat | 'compact', out: number, inputs: number, tokens: number): Make {
  const compact = format === 'compact'
  const loaded = compact ? 'bf16' : format
  return (stream, operands) => {
    const x = operands.normal('bf16', [tokens, inputs])
    const layout = layoutOf(stream)
    const one = operands.weight(loaded, layout, out, inputs)
    const count = tokens > 8 && !stream.device.cuda ? 1 : copies(one.bytes)
    const weights = [one, ...Array.from({ length: count - 1 }, () => operands.weight(loaded, layout, out, inputs))]
    if (compact) for (const weight of weights) stream.compactWeight(weight)
    return {
      // Where a machine's kernels do not want it so, it stays as it is.
      get op() {
        return `linear ${loaded}${one.exceptions === undefined ? '' : ' in 12 bits'}`
      },
      shape: `${out} × ${inputs}`,
      sequences: prompt(tokens),
      // Fewer, once it is compact.
      get bytes() {
        return one.bytes + 2 * tokens * (inputs + out)
      },
      flops: 2 * tokens * inputs * out,
      calls: weights.map((weight) => () => stream.linear(x, weight)),
    }
  }
}

/** Layouts of weights as lib/checkpoint/weight-loader.ts chooses them. */
export function layoutOf(stream: Stream): WeightLayout {
  return stream.device.cuda ? 'fragments' : 'panels'
}
const downLayout: WeightLayout = 'columns'

const [experts, topK, width, sharedWidth, common] = [128, 6, 1856, 3712, 0.5]

/** A layer of experts of which each has `reluZeros` of its hidden activations at zero, for inputs whose mean is `common`. */
export function moeParameters(stream: Stream, operands: Operands, reluZeros: number): MoeParameters {
  const lean = -normalQuantile(reluZeros) / (common * Math.sqrt(hidden))
  const up = (out: number, matrices: number): Weight =>
    operands.weight('nvfp4', layoutOf(stream), out, hidden, { matrices, lean })
  // Next to no gain: the layer adds to its input, which the next launch reads.
  const down = (inputs: number, matrices: number): Weight =>
    operands.weight('nvfp4', downLayout, hidden, inputs, { matrices, gain: 1e-4 })
  return {
    norm: operands.normal('f32', [hidden], { mean: 1, deviation: 0 }),
    epsilon: 1e-5,
    router: operands.normal('f32', [experts, hidden], { deviation: 1 / Math.sqrt(hidden), alternate: true }),
    bias: operands.zeros('f32', [experts]),
    up: up(width, experts),
    down: down(width, experts),
    sharedUp: up(sharedWidth, 1),
    sharedDown: down(sharedWidth, 1),
    topK,
    groups: 1,
    topkGroups: 1,
    normalize: true,
    scale: 2.5,
  }
}

type MoeWeights = Record<'up' | 'down' | 'sharedUp' | 'sharedDown', Weight>

/** Tokens whose mean is what `moeParameters` leans on. */
export function moeInputs(operands: Operands, tokens: number): Tensor {
  return operands.normal('f32', [tokens, hidden], { mean: common, deviation: Math.sqrt(1 - common ** 2) })
}

function moe(tokens: number, reluZeros: number): Make {
  return (stream, operands) => {
    const parameters = moeParameters(stream, operands, reluZeros)
    const { up, down, sharedUp, sharedDown } = parameters as MoeWeights
    const touched = experts * (1 - (1 - topK / experts) ** tokens)
    // Of `down`, columns that some token's activation multiplies, and scales of blocks (an eighth of their codes) that hold one.
    const read = (rows: number) => (8 * (1 - reluZeros ** rows) + 1 - reluZeros ** (16 * rows)) / 9
    const expertBytes = (up.bytes + down.bytes * read((tokens * topK) / touched)) / experts
    const sharedBytes = sharedUp.bytes + sharedDown.bytes * read(tokens)
    // Different inputs choose different experts, so that one call does not find the weights of the one before it.
    const inputs = Array.from({ length: tokens > 8 ? 1 : 16 }, () => moeInputs(operands, tokens))
    return {
      op: 'moe nvfp4',
      shape: `6 of 128 × ${width}, shared ${sharedWidth}, ${Math.round(100 * reluZeros)} % zeros`,
      sequences: prompt(tokens),
      bytes: touched * expertBytes + sharedBytes + 4 * experts * hidden,
      flops: 4 * tokens * hidden * (topK * width + sharedWidth),
      calls: inputs.map((x) => () => stream.moe(x, parameters)),
    }
  }
}

const [heads, headDim, state, groups, kernel] = [64, 64, 128, 8, 4]
const inner = heads * headDim
const channels = inner + 2 * groups * state

export function mambaParameters(operands: Operands): MambaParameters {
  return {
    groups,
    epsilon: 1e-5,
    convWeight: operands.normal('f32', [channels, kernel], { deviation: 0.5 }),
    dtBias: operands.normal('f32', [heads], { mean: -4, deviation: 1 }),
    aLog: operands.normal('f32', [heads], { mean: 1.5, deviation: 0.5 }),
    d: operands.normal('f32', [heads], { mean: 1, deviation: 0 }),
    norm: operands.normal('f32', [inner], { mean: 1, deviation: 0 }),
  }
}

export function mambaState(operands: Operands, sequences: number): MambaState {
  return {
    conv: operands.zeros('bf16', [sequences, channels, kernel - 1]),
    ssm: operands.zeros('f32', [sequences, heads, headDim, state]),
  }
}

function mamba(tokens: number, sequences: number): Make {
  return (stream, operands) => {
    const projected = operands.normal('bf16', [tokens * sequences, inner + channels + heads])
    const parameters = mambaParameters(operands)
    const slots = operands.zeros('i32', [sequences, 8])
    const stateBytes = sequences * 4 * inner * state
    const states = Array.from({ length: tokens > 1 ? 1 : copies(stateBytes) }, () => mambaState(operands, sequences))
    return {
      op: tokens > 1 ? 'mamba scan' : 'mamba step',
      shape: `${sequences} × ${heads} heads, ${headDim} × ${state}`,
      sequences: Array.from({ length: sequences }, (_, slot) => ({
        ...(prompt(tokens, tokens > 1 ? 0 : 100)[0] as StepSequence),
        slot,
      })),
      bytes: 2 * stateBytes + 2 * tokens * sequences * (2 * inner + channels + heads),
      flops: 5 * tokens * sequences * inner * state,
      calls: states.map((each) => () => stream.mamba(projected, parameters, each, slots)),
    }
  }
}

function attention(tokens: number, position: number): Make {
  return (stream, operands) => {
    const [heads, kvHeads, headDim] = [32, 2, 128]
    const pages = Math.ceil((position + tokens) / pageTokens)
    const qkv = operands.normal('bf16', [tokens, (heads + 2 * kvHeads) * headDim])
    const slots = operands.zeros('i32', [1, 8])
    const bytes = pages * pageTokens * 2 * kvHeads * headDim
    const caches = Array.from({ length: tokens > 8 ? 1 : copies(bytes) }, () =>
      operands.zeros('e4m3', [pages, 2, kvHeads, pageTokens, headDim]),
    )
    return {
      op: 'attention fp8',
      shape: `${heads} heads over ${kvHeads}, at ${position}`,
      sequences: prompt(tokens, position),
      bytes: bytes + 2 * tokens * (2 * heads + 2 * kvHeads) * headDim,
      flops: 4 * tokens * (position + tokens / 2) * heads * headDim,
      calls: caches.map((cache) => () => stream.attention(qkv, { heads, kScale: 1, vScale: 1 }, cache, slots)),
    }
  }
}

function sample(vocabulary: number): Make {
  return (stream, operands) => {
    const logits = operands.normal('f32', [1, vocabulary])
    const state = {
      slots: operands.zeros('i32', [1, 8]),
      seen: operands.zeros('u8', [1, vocabulary]),
      counts: operands.zeros('u32', [1, vocabulary]),
    }
    const [sequence] = prompt(1)
    return {
      op: 'sample',
      shape: `${vocabulary}, top-p 0.9`,
      sequences: [{ ...(sequence as StepSequence), rows: [0], sampling }],
      bytes: 4 * vocabulary,
      flops: 2 * vocabulary,
      calls: [() => stream.sample(logits, state)],
    }
  }
}

function embed(tokens: number): Make {
  return (stream, operands) => {
    const table = operands.normal('bf16', [16384, hidden])
    return {
      op: 'embed',
      shape: `${hidden}`,
      sequences: prompt(tokens),
      bytes: 6 * tokens * hidden,
      flops: 0,
      calls: [() => stream.embed(table, tokens)],
    }
  }
}

function quantize(rows: number, columns: number): Make {
  return (stream, operands) => {
    const w = operands.normal('bf16', [rows, columns])
    const to = {
      codes: operands.zeros('u8', [rows, columns / 2]),
      blockScales: operands.zeros('e4m3', [rows, columns / 16]),
      global: operands.zeros('f32', [1]),
    }
    const call = () => {
      stream.quantize(w, to)
      return undefined
    }
    return {
      op: 'quantize',
      shape: `${rows} × ${columns}`,
      sequences: prompt(1),
      bytes: w.bytes + to.codes.bytes + to.blockScales.bytes,
      flops: 0,
      calls: [call],
    }
  }
}

/** Every op at the 30B model's shapes: decode, a small batch, and a chunk of a prompt. */
export const cases: readonly Make[] = [
  ...[1, 8, 128].map((tokens) => linear('nvfp4', 10304, hidden, tokens)),
  ...[1, 128].map((tokens) => linear('e4m3', 10304, hidden, tokens)),
  ...[1, 8, 128].map((tokens) => linear('bf16', 10304, hidden, tokens)),
  ...[1, 8, 128].map((tokens) => linear('compact', 10304, hidden, tokens)),
  ...[1, 8, 128].map((tokens) => moe(tokens, 0.907)),
  moe(1, 0.5),
  mamba(1, 1),
  mamba(1, 8),
  mamba(256, 1),
  attention(1, 4096),
  attention(256, 0),
  embed(256),
  sample(131072),
  quantize(1856, hidden),
]

/** The same for a GPU, at the batches that servers decode. */
export const gpuCases: readonly Make[] = [
  ...[1, 8, 32, 64, 512].flatMap((tokens) => [
    linear('nvfp4', 10304, hidden, tokens),
    linear('nvfp4', hidden, inner, tokens),
    linear('bf16', 10304, hidden, tokens),
    linear('compact', 10304, hidden, tokens),
  ]),
  ...[1, 8, 32, 64, 512].map((tokens) => moe(tokens, 0.907)),
  ...[1, 8, 32, 64].map((sequences) => mamba(1, sequences)),
  mamba(512, 1),
  ...[64, 4096, 32768].map((position) => attention(1, position)),
  attention(512, 0),
  embed(512),
  sample(131072),
]

/** Measures one case: the fastest of several launches of a graph with all its calls. */
export async function measure(stream: Stream, make: Make, rooflineGBs: number): Promise<OpResult> {
  const operands = new Operands(stream)
  try {
    const made = make(stream, operands)
    await stream.sync()
    const { op, shape, sequences, bytes, flops, calls } = made
    const graph = stream.capture(() => {
      for (const call of calls) stream.scope(call)
      return undefined
    })
    try {
      const input = new StepInput().pack(sequences)
      let fastest = Number.POSITIVE_INFINITY
      for (let run = 0; run <= bestOf; run++) {
        const start = performance.now()
        const launches = stream.device.cuda ? gpuLaunches : 1
        await Promise.all(Array.from({ length: launches }, () => graph.launch(input)))
        // The first one brings pages and code in.
        if (run > 0) fastest = Math.min(fastest, (performance.now() - start) / launches)
      }
      const seconds = fastest / 1e3 / calls.length
      return {
        op,
        shape,
        tokens: sequences.reduce((sum, { ids }) => sum + (ids?.length ?? 1), 0),
        microseconds: seconds * 1e6,
        gigabytesPerSecond: bytes / seconds / 1e9,
        gigaflops: flops / seconds / 1e9,
        rooflineShare: bytes / seconds / 1e9 / rooflineGBs,
      }
    } finally {
      graph.dispose()
    }
  } finally {
    await stream.sync().catch(() => undefined)
    operands.dispose()
  }
}
