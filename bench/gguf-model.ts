import type { TensorRef } from '../lib/checkpoint/safetensors.js'
import { Device } from '../lib/core/device.js'
import { SyntheticFile } from '../lib/core/synthetic-file.js'
import { describeSynthetic, parseSyntheticName, type SyntheticModel } from '../lib/synthetic/synthetic.js'
import { type GgufTensor, type GgufValue, writeGguf } from './gguf-file.js'

/** Reads a whole tensor of the model. */
type Read = (ref: TensorRef) => AsyncIterable<Uint8Array>

/**
 * Codes (low nibble first) and block scales of rows of 16 k elements as GGUF's blocks of 64 elements: four scales, then the
 * codes of each 16, the first eight in low nibbles and the last eight in high ones. No bit of a weight changes.
 */
export function packNvfp4(codes: Uint8Array, scales: Uint8Array): Uint8Array {
  const packed = new Uint8Array(codes.length + scales.length)
  for (let from = 0, scale = 0, to = 0; scale < scales.length; to += 36) {
    for (let s = 0; s < 4; s++, scale++, from += 8) {
      packed[to + s] = scales[scale] as number
      for (let i = 0; i < 4; i++) {
        const [low, high] = [codes[from + i] as number, codes[from + 4 + i] as number]
        packed[to + 4 + 8 * s + 2 * i] = (low & 15) | ((high & 15) << 4)
        packed[to + 4 + 8 * s + 2 * i + 1] = (low >> 4) | (high & 0xf0)
      }
    }
  }
  return packed
}

async function whole(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = []
  for await (const piece of pieces) all.push(piece)
  return all.length === 1 && all[0] ? all[0] : Buffer.concat(all)
}

/** bf16 as float32, each number changed on the way. */
async function* widened(pieces: AsyncIterable<Uint8Array>, change: (value: number) => number) {
  for await (const bytes of pieces) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const words = Uint32Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) << 16)
    yield new Uint8Array(new Float32Array(words.buffer).map(change).buffer)
  }
}

/** The tensors of a model under the names and in the types that llama.cpp's `nemotron_h_moe` has for them. */
export function ggufTensors(model: SyntheticModel, read: Read): GgufTensor[] {
  const { layers, mamba, moe } = model.config
  const tensors: GgufTensor[] = []
  const find = (name: string): TensorRef => {
    const ref = model.tensors.get(name)
    if (ref === undefined) throw new RangeError(`there is no tensor ${name}`)
    return ref
  }
  /** Everything but matrices is float32 there. */
  const vector = (name: string, from: string, shape?: number[], change = (value: number) => value) => {
    const ref = find(from)
    const data = () => (ref.dtype === 'F32' ? read(ref) : widened(read(ref), change))
    tensors.push({ name, type: 'F32', shape: shape ?? ref.shape, data })
  }
  /** One matrix, or those of all experts, in the format that they are stored in. */
  const matrices = (name: string, modules: string[], stacked = modules.length > 1) => {
    const refs = modules.map((module) => find(`${module}.weight`))
    const [rows = 0, stored = 0] = refs[0]?.shape ?? []
    const outer = stacked ? [modules.length] : []
    if (refs[0]?.dtype === 'BF16') {
      const data = async function* () {
        for (const ref of refs) yield* read(ref)
      }
      tensors.push({ name: `${name}.weight`, type: 'BF16', shape: [...outer, rows, stored], data })
      return
    }
    const data = async function* () {
      for (const module of modules) {
        const codes = await whole(read(find(`${module}.weight`)))
        yield packNvfp4(codes, await whole(read(find(`${module}.weight_scale`))))
      }
    }
    tensors.push({ name: `${name}.weight`, type: 'NVFP4', shape: [...outer, rows, 2 * stored], data })
    const scales = async function* () {
      for (const module of modules) yield* read(find(`${module}.weight_scale_2`))
    }
    tensors.push({ name: `${name}.scale`, type: 'F32', shape: [modules.length], data: scales })
  }
  matrices('token_embd', ['backbone.embeddings'])
  for (const [index, kind] of layers.entries()) {
    const [to, from] = [`blk.${index}`, `backbone.layers.${index}.mixer`]
    vector(`${to}.attn_norm.weight`, `backbone.layers.${index}.norm.weight`)
    if (kind === 'mamba') {
      const { heads, headDim, groups } = mamba
      matrices(`${to}.ssm_in`, [`${from}.in_proj`])
      const conv = find(`${from}.conv1d.weight`).shape
      vector(`${to}.ssm_conv1d.weight`, `${from}.conv1d.weight`, [conv[0] ?? 0, conv[2] ?? 0])
      vector(`${to}.ssm_conv1d.bias`, `${from}.conv1d.bias`)
      vector(`${to}.ssm_dt.bias`, `${from}.dt_bias`)
      vector(`${to}.ssm_a`, `${from}.A_log`, [heads, 1], (value) => -Math.exp(value))
      vector(`${to}.ssm_d`, `${from}.D`, [heads, 1])
      vector(`${to}.ssm_norm.weight`, `${from}.norm.weight`, [groups, (heads * headDim) / groups])
      matrices(`${to}.ssm_out`, [`${from}.out_proj`])
    } else if (kind === 'attention') {
      for (const part of ['q', 'k', 'v']) matrices(`${to}.attn_${part}`, [`${from}.${part}_proj`])
      matrices(`${to}.attn_output`, [`${from}.o_proj`])
    } else {
      vector(`${to}.ffn_gate_inp.weight`, `${from}.gate.weight`)
      vector(`${to}.exp_probs_b.bias`, `${from}.gate.e_score_correction_bias`)
      for (const part of ['up', 'down']) {
        const experts = Array.from({ length: moe.experts }, (_, expert) => `${from}.experts.${expert}.${part}_proj`)
        matrices(`${to}.ffn_${part}_exps`, experts, true)
        matrices(`${to}.ffn_${part}_shexp`, [`${from}.shared_experts.${part}_proj`])
      }
    }
  }
  vector('output_norm.weight', 'backbone.norm_f.weight')
  matrices('output', ['lm_head'])
  return tensors
}

/** What llama.cpp wants to know of the model. There is no vocabulary. */
export function ggufMetadata({ config, location }: SyntheticModel): Record<string, GgufValue> {
  const { layers, mamba, attention, moe } = config
  const architecture = 'nemotron_h_moe'
  const of = (kind: string, value: number) => ({ i32s: layers.map((layer) => (layer === kind ? value : 0)) })
  const values: Record<string, GgufValue> = {
    block_count: { u32: layers.length },
    vocab_size: { u32: config.vocabSize },
    context_length: { u32: config.maxPositions },
    embedding_length: { u32: config.hiddenSize },
    feed_forward_length: of('moe', moe.width),
    'attention.head_count': { u32: attention.heads },
    'attention.head_count_kv': of('attention', attention.kvHeads),
    'attention.key_length': { u32: attention.headDim },
    'attention.value_length': { u32: attention.headDim },
    'attention.layer_norm_epsilon': { f32: config.epsilon },
    'attention.layer_norm_rms_epsilon': { f32: config.epsilon },
    'ssm.conv_kernel': { u32: mamba.convKernel },
    'ssm.inner_size': { u32: mamba.heads * mamba.headDim },
    'ssm.state_size': { u32: mamba.stateSize },
    'ssm.time_step_rank': { u32: mamba.heads },
    'ssm.group_count': { u32: mamba.groups },
    expert_count: { u32: moe.experts },
    expert_used_count: { u32: moe.topK },
    expert_shared_count: { u32: 1 },
    expert_group_count: { u32: moe.groups },
    expert_feed_forward_length: { u32: moe.width },
    expert_shared_feed_forward_length: { u32: moe.sharedWidth },
    expert_weights_norm: { bool: moe.normTopK },
    expert_weights_scale: { f32: moe.scale },
  }
  return {
    'general.architecture': { string: architecture },
    'general.name': { string: location },
    // Mostly NVFP4.
    'general.file_type': { u32: 39 },
    'tokenizer.ggml.model': { string: 'no_vocab' },
    ...Object.fromEntries(Object.entries(values).map(([key, value]) => [`${architecture}.${key}`, value])),
  }
}

/** Writes `synthetic:<preset>` as a GGUF file with the very same weights, for `--peer-model`. Returns its size. */
export async function writeSyntheticGguf(
  name: string,
  path: string,
  onTensor?: (written: number) => void,
): Promise<number> {
  const { preset, options } = parseSyntheticName(name)
  const model = describeSynthetic(preset, options)
  const file = new SyntheticFile(model.file)
  const stream = Device.open('cpu').stream()
  const pieceBytes = 16 << 20
  const buffer = stream.device.buffer(pieceBytes)
  async function* read(ref: TensorRef) {
    for (let at = 0; at < ref.bytes; at += pieceBytes) {
      const piece = buffer.tensor('u8', [Math.min(pieceBytes, ref.bytes - at)])
      stream.loadTensor(piece, { file, offset: ref.offset + at, dtype: 'u8', name: ref.name })
      yield await stream.read(piece)
    }
  }
  try {
    return await writeGguf(path, ggufMetadata(model), ggufTensors(model, read), onTensor)
  } finally {
    stream.dispose()
    file.dispose()
    buffer.dispose()
  }
}
