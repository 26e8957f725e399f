import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { expectError } from '../helpers/expect-error.js'
import {
  microConfig,
  microLinears,
  microTensors,
  type StoredFormat,
  storedLinear,
  takeAll,
} from '../helpers/micro-checkpoint.js'
import { buildSafetensors, f32, folderWith, type TestTensor, zeros } from '../helpers/safetensors.js'

type Tensors = Record<string, TestTensor>
interface Parts {
  config?: object
  tensors?: Tensors
  files?: Record<string, string | object>
}

async function folderOf({ config = {}, tensors = microTensors(), files = {} }: Parts = {}): Promise<string> {
  return folderWith({
    'config.json': { ...microConfig, ...config },
    'model.safetensors': buildSafetensors(tensors),
    ...files,
  })
}

const open = async (parts?: Parts) => Checkpoint.open(await folderOf(parts))
const load = async (parts?: Parts) => takeAll(await open(parts))

/** All tensors but those whose name the expression matches. */
const without = (tensors: Tensors, expression: RegExp) =>
  Object.fromEntries(Object.entries(tensors).filter(([name]) => !expression.test(name)))

const renamed = (tensors: Tensors, from: RegExp, to: string) =>
  Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name.replace(from, to), tensor]))

const modelopt = (algorithm: string, changes: object = {}) => ({
  'hf_quant_config.json': { quantization: { quant_algo: algorithm, exclude_modules: ['lm_head'], ...changes } },
})
const compressed = (format: string, weights: object) => ({
  quantization_config: {
    quant_method: 'compressed-tensors',
    format,
    config_groups: { group_0: { targets: ['Linear'], weights: { type: 'float', ...weights } } },
    ignore: ['lm_head'],
  },
})
const quantized = (format: StoredFormat) => microTensors((module) => (module === 'lm_head' ? 'bf16' : format))
const nvfp4Packed = compressed('nvfp4-pack-quantized', { num_bits: 4, group_size: 16, strategy: 'tensor_group' })

const inProj = 'backbone.layers.0.mixer.in_proj'
const experts = 'backbone.layers.1.mixer.experts'

/** The micro checkpoint with the experts of its layer as stacks. */
function stacked(format: StoredFormat, rename: (name: string) => string = (name) => name): Tensors {
  const others = without(quantized(format), /\.experts\.\d/)
  const up = storedLinear(`${experts}.up_proj`, 16, 32, format, [4])
  const down = storedLinear(`${experts}.down_proj`, 32, 16, format, [4])
  const stacks = Object.entries({ ...up, ...down }).map(([name, tensor]) => [rename(name), tensor] as const)
  return { ...others, ...Object.fromEntries(stacks) }
}

describe('Checkpoint', () => {
  it('opens a folder and gives every linear module', async () => {
    const checkpoint = await open({
      files: { 'generation_config.json': { eos_token_id: [2, 13], do_sample: true, top_p: 0.95 } },
    })
    expect(checkpoint.generation).toEqual({ stopIds: [2, 11, 13], sample: true, topP: 0.95 })
    const sources = takeAll(checkpoint)
    expect([...sources.keys()].sort()).toEqual(Object.keys(microLinears).sort())
    for (const [module, [out, inputs]] of Object.entries(microLinears)) {
      const weight = checkpoint.tensors.get(`${module}.weight`)
      expect(sources.get(module)).toEqual({ module, format: 'bf16', out, in: inputs, weight, scale: 1 })
    }
    expect(checkpoint.unusedTensors()).toEqual([])
  })

  it('reads NVFP4 of ModelOpt', async () => {
    const sources = await load({ tensors: quantized('nvfp4'), files: modelopt('NVFP4') })
    expect(sources.get('lm_head')?.format).toBe('bf16')
    expect(sources.get(inProj)).toMatchObject({
      format: 'nvfp4',
      weight: { name: `${inProj}.weight`, dtype: 'U8', shape: [246, 16] },
      blockScale: { name: `${inProj}.weight_scale`, dtype: 'F8_E4M3', shape: [246, 2] },
      scale: 0.25,
      inputScale: 0.5,
    })
  })

  it('reads NVFP4 of compressed-tensors, with reciprocal scales', async () => {
    const sources = await load({ config: nvfp4Packed, tensors: quantized('nvfp4-packed') })
    expect(sources.get(inProj)).toMatchObject({
      format: 'nvfp4',
      weight: { name: `${inProj}.weight_packed` },
      scale: 0.25,
      inputScale: 0.5,
    })
  })

  it('rounds a reciprocal to float32', async () => {
    const tensors = { ...quantized('nvfp4-packed'), [`${inProj}.weight_global_scale`]: f32([3], [1]) }
    expect((await load({ config: nvfp4Packed, tensors })).get(inProj)?.scale).toBe(Math.fround(1 / 3))
  })

  it('reads FP8 of ModelOpt and of compressed-tensors', async () => {
    const expected = { format: 'fp8', weight: { dtype: 'F8_E4M3', shape: [246, 32] }, scale: 0.25, inputScale: 0.5 }
    const own = await load({ tensors: quantized('fp8'), files: modelopt('FP8') })
    expect(own.get(inProj)).toMatchObject(expected)
    const config = compressed('float-quantized', { num_bits: 8, strategy: 'tensor' })
    expect((await load({ config, tensors: quantized('fp8') })).get(inProj)).toMatchObject(expected)
  })

  it.each([[[246, 1]], [[246]]])('reads FP8 with a scale per channel of shape %j', async (shape) => {
    const tensors = { ...quantized('fp8-channel'), [`${inProj}.weight_scale`]: zeros('F32', ...shape) }
    const source = (
      await load({ config: compressed('float-quantized', { num_bits: 8, strategy: 'channel' }), tensors })
    ).get(inProj)
    expect(source).toMatchObject({ format: 'fp8', scale: 1, rowScale: { shape: [246], dtype: 'F32' } })
    expect(source?.inputScale).toBeUndefined()
  })

  it('reads MIXED_PRECISION module by module', async () => {
    const formats: Record<string, StoredFormat> = { lm_head: 'nvfp4', [inProj]: 'fp8' }
    const sources = await load({
      tensors: microTensors((module) => formats[module] ?? (module.includes('experts') ? 'nvfp4' : 'bf16')),
      files: modelopt('MIXED_PRECISION', {
        quantized_layers: {
          lm_head: { quant_algo: 'W4A16_NVFP4', group_size: 16 },
          [inProj]: { quant_algo: 'FP8' },
          [experts]: { quant_algo: 'NVFP4' },
          'backbone.layers.1.mixer.shared_experts': { quant_algo: 'NVFP4' },
        },
      }),
    })
    const format = (module: string) => sources.get(module)?.format
    expect([inProj, 'lm_head', `${experts}.3.up_proj`].map(format)).toEqual(['fp8', 'nvfp4', 'nvfp4'])
    expect(format('backbone.layers.2.mixer.q_proj')).toBe('bf16')
  })

  it('does without input scales', async () => {
    const tensors = without(quantized('nvfp4'), /input_scale$/)
    const source = (await load({ tensors, files: modelopt('W4A16_NVFP4') })).get(inProj)
    expect(source).not.toHaveProperty('inputScale')
  })

  it.each<[string, StoredFormat, Parts, (name: string) => string]>([
    ['parameters as transformers holds them', 'bf16', {}, (name) => name.replace('.weight', '')],
    ['modules', 'bf16', {}, (name) => name],
    ['NVFP4 modules', 'nvfp4', { files: modelopt('NVFP4') }, (name) => name],
    [
      'NVFP4 parameters',
      'nvfp4',
      { files: modelopt('NVFP4') },
      (name) =>
        name
          .replace('_proj.weight_', '_proj_weight_')
          .replace('_proj.weight', '_proj')
          .replace('_proj.input', '_proj_input'),
    ],
    ['packed NVFP4 modules', 'nvfp4-packed', { config: nvfp4Packed }, (name) => name],
    ['FP8 modules', 'fp8', { files: modelopt('FP8') }, (name) => name],
    [
      'FP8 modules with channel scales',
      'fp8-channel',
      { config: compressed('float-quantized', { num_bits: 8, strategy: 'channel' }) },
      (name) => name,
    ],
  ])('reads stacked experts: %s', async (_, format, parts, rename) => {
    const checkpoint = await open({ ...parts, tensors: stacked(format, rename) })
    const sources = takeAll(checkpoint)
    const stack = checkpoint.tensors.get(
      rename(`${experts}.down_proj.${format === 'nvfp4-packed' ? 'weight_packed' : 'weight'}`),
    )
    const source = sources.get(`${experts}.down_proj[3]`)
    const bytes = (stack?.bytes ?? 0) / 4
    expect(source).toMatchObject({ out: 32, in: 16, weight: { offset: (stack?.offset ?? 0) + 3 * bytes, bytes } })
    expect(source?.weight.shape).toEqual([32, format.startsWith('nvfp4') ? 8 : 16])
    expect(source?.scale).toBe(format === 'bf16' || format === 'fp8-channel' ? 1 : 0.25)
    if (format.startsWith('nvfp4')) expect(source?.blockScale).toMatchObject({ shape: [32, 1], bytes: 32 })
    if (format === 'fp8-channel') expect(source?.rowScale).toMatchObject({ shape: [32], bytes: 64 })
  })

  it('gives each expert of a stack its own scale', async () => {
    const tensors = { ...stacked('fp8'), [`${experts}.up_proj.weight_scale`]: f32([1, 2, 3, 4], [4, 1, 1]) }
    const sources = await load({ tensors, files: modelopt('FP8') })
    expect([0, 1, 2, 3].map((expert) => sources.get(`${experts}.up_proj[${expert}]`)?.scale)).toEqual([1, 2, 3, 4])
  })

  it.each([
    ['the stack', [`${experts}.up_proj`, `${experts}.down_proj`]],
    ['every expert', [`${experts}.*`]],
    ['their holder', [experts]],
  ])('finds a stack excluded by %s', async (_, names) => {
    const tensors = { ...stacked('bf16'), ...without(quantized('nvfp4'), /\.experts\./) }
    const sources = await load({ tensors, files: modelopt('NVFP4', { exclude_modules: ['lm_head', ...names] }) })
    expect(sources.get(`${experts}.up_proj[0]`)?.format).toBe('bf16')
  })

  it('accepts the prefix model.', async () => {
    const checkpoint = await open({
      tensors: renamed(quantized('nvfp4'), /^backbone\./, 'model.'),
      files: modelopt('NVFP4'),
    })
    expect(takeAll(checkpoint).get(inProj)?.weight.name).toBe('model.layers.0.mixer.in_proj.weight')
  })

  it('uses the embedding table as head when tied, unless a head is stored', async () => {
    const config = { tie_word_embeddings: true }
    const tied = await load({ config, tensors: without(microTensors(), /^lm_head/) })
    expect(tied.get('lm_head')?.weight.name).toBe('backbone.embeddings.weight')
    expect((await load({ config })).get('lm_head')?.weight.name).toBe('lm_head.weight')
  })

  it('reads biases where the config declares them', async () => {
    const bias = (module: string, size: number) => ({ [`${module}.bias`]: zeros('BF16', size) })
    const mamba = { ...bias(inProj, 246), ...bias('backbone.layers.0.mixer.out_proj', 32) }
    const sources = await load({ config: { use_bias: true }, tensors: { ...microTensors(), ...mamba } })
    expect(sources.get(inProj)?.bias).toMatchObject({ shape: [246] })
    expect(sources.get('lm_head')?.bias).toBeUndefined()

    const dense = Object.entries(microLinears)
      .filter(([module]) => /shared_experts|layers\.3/.test(module))
      .map(([module, [out]]) => bias(module, out))
    const mlp = { config: { mlp_bias: true }, tensors: Object.assign(microTensors(), ...dense) }
    expect((await load(mlp)).get('backbone.layers.3.mixer.up_proj')?.bias).toMatchObject({ shape: [80] })

    const own = Object.entries(microLinears).filter(([module]) => /\.experts\./.test(module))
    Object.assign(mlp.tensors, ...own.map(([module, [out]]) => bias(module, out)))
    expect((await load(mlp)).get(`${experts}.2.down_proj`)?.bias).toMatchObject({ shape: [32] })
    delete mlp.tensors[`${experts}.2.down_proj.bias`]
    await expectError(() => load(mlp), 'BAD_FORMAT', `${experts}.2.down_proj.bias`, 'missing')
  })

  it('lets attention do without its declared biases, but only without all', async () => {
    const attention = { config: { attention_bias: true } }
    expect((await load(attention)).get('backbone.layers.2.mixer.q_proj')?.bias).toBeUndefined()
    const some = { 'backbone.layers.2.mixer.q_proj.bias': zeros('F32', 96) }
    const tensors = { ...microTensors(), ...some }
    await expectError(() => load({ ...attention, tensors }), 'BAD_FORMAT', 'k_proj.bias', 'missing')
    await expectError(() => load({ tensors }), 'BAD_FORMAT', 'unknown tensors', 'q_proj.bias')
  })

  it('reads the scales of the KV cache in either place, and 1 without', async () => {
    expect((await open()).kvScales(2)).toEqual({ k: 1, v: 1 })
    const mixer = 'backbone.layers.2.mixer'
    const under = { [`${mixer}.k_proj.k_scale`]: f32([2]), [`${mixer}.v_proj.v_scale`]: f32([3], [1]) }
    const beside = { [`${mixer}.k_scale`]: f32([4], [1]), [`${mixer}.v_scale`]: f32([5], [1]) }
    const first = await open({ tensors: { ...microTensors(), ...under } })
    expect(first.kvScales(2)).toEqual({ k: 2, v: 3 })
    takeAll(first)
    expect((await open({ tensors: { ...microTensors(), ...beside } })).kvScales(2)).toEqual({ k: 4, v: 5 })
    const half = { ...microTensors(), [`${mixer}.k_scale`]: f32([4]) }
    await expectError(() => load({ tensors: half }), 'BAD_FORMAT', 'v_scale', 'missing')
  })

  it('reads scales of any floating-point dtype', async () => {
    const bits = (dtype: 'BF16' | 'F16' | 'F64', data: Uint8Array) => ({ dtype, shape: [1], data })
    const scales = [
      bits('BF16', new Uint8Array([0x80, 0x3e])),
      bits('F16', new Uint8Array([0x00, 0x34])),
      bits('F64', new Uint8Array(Float64Array.of(0.25).buffer)),
    ]
    for (const scale of scales) {
      const tensors = { ...quantized('fp8'), [`${inProj}.weight_scale`]: scale }
      expect((await load({ tensors, files: modelopt('FP8') })).get(inProj)?.scale).toBe(0.25)
    }
  })

  it('accepts the scale 0 of an all-zero matrix', async () => {
    const tensors = { ...quantized('nvfp4'), [`${inProj}.weight_scale_2`]: f32([0]) }
    expect((await load({ tensors, files: modelopt('NVFP4') })).get(inProj)?.scale).toBe(0)
  })

  it('skips the tensors of declared prediction layers, and says so', async () => {
    const tensors = { ...microTensors(), 'mtp.layers.0.mixer.q_proj.weight': zeros('BF16', 2) }
    const checkpoint = await open({ config: { num_nextn_predict_layers: 1 }, tensors })
    takeAll(checkpoint)
    expect(checkpoint.ignoredTensors).toEqual(['mtp.layers.0.mixer.q_proj.weight'])
    await expectError(() => load({ tensors }), 'BAD_FORMAT', 'unknown tensors', 'mtp.layers.0')
  })

  it('counts parameters and bytes by format', async () => {
    const checkpoint = await open({ tensors: quantized('nvfp4'), files: modelopt('NVFP4') })
    const { summary } = checkpoint
    const plain = await open()
    expect(checkpoint.parameters).toBe(plain.parameters)
    const linear = Object.entries(microLinears).filter(([module]) => module !== 'lm_head')
    const parameters = linear.reduce((sum, [, [out, inputs]]) => sum + out * inputs, 0)
    expect(summary.formats.nvfp4).toEqual({
      tensors: linear.length,
      parameters,
      bytes: parameters / 2 + parameters / 16 + linear.length * 8,
    })
    const bytes = Object.values(summary.formats).reduce((sum, format) => sum + format.bytes, 0)
    const data = [...checkpoint.tensors.values()].reduce((sum, ref) => sum + ref.bytes, 0)
    expect(bytes).toBe(data)
    expect(checkpoint.bytes).toBeGreaterThan(data)
  })

  it('has a fingerprint of headers, sizes and configs', async () => {
    const { fingerprint } = await open()
    expect(fingerprint).toMatch(/^[0-9a-f]{64}$/)
    expect((await open()).fingerprint).toBe(fingerprint)
    expect((await open({ config: { layer_norm_epsilon: 1e-6 } })).fingerprint).not.toBe(fingerprint)
    const tensors = { ...microTensors(), 'backbone.norm_f.weight': zeros('F32', 32) }
    expect((await open({ tensors })).fingerprint).not.toBe(fingerprint)
  })

  it('reads one scalar', async () => {
    const checkpoint = await open({ tensors: quantized('nvfp4'), files: modelopt('NVFP4') })
    expect(checkpoint.readScalar(checkpoint.tensor(`${inProj}.weight_scale_2`))).toBe(0.25)
    await expectError(() => checkpoint.readScalar(checkpoint.tensor(`${inProj}.weight`)), 'BAD_FORMAT', 'one F32 scale')
  })
})

describe('Checkpoint refuses', () => {
  const nvfp4 = quantized('nvfp4')
  const own = modelopt('NVFP4')

  it.each<[string, Parts, ...string[]]>([
    ['a missing plain tensor', { tensors: without(microTensors(), /norm_f/) }, '"backbone.norm_f.weight" is missing'],
    ['a missing weight', { tensors: without(microTensors(), /q_proj/) }, 'q_proj.weight" is missing'],
    [
      'a missing expert',
      { tensors: without(microTensors(), /experts\.3\.up/) },
      'experts.3.up_proj.weight" is missing',
    ],
    ['a missing head', { tensors: without(microTensors(), /lm_head/) }, '"lm_head.weight" is missing'],
    ['a missing convolution bias', { tensors: without(microTensors(), /conv1d.bias/) }, 'conv1d.bias" is missing'],
    ['a declared bias that is missing', { config: { use_bias: true } }, 'in_proj.bias" is missing'],
    [
      'an unknown tensor',
      { tensors: { ...microTensors(), 'backbone.layers.0.extra': zeros('F32', 1) } },
      '"backbone.layers.0.extra"',
      'unknown',
    ],
    [
      'a layer too many',
      { tensors: { ...microTensors(), 'backbone.layers.4.norm.weight': zeros('BF16', 32) } },
      'layers.4.norm.weight',
    ],
    [
      'a bias that is not declared',
      { tensors: { ...microTensors(), [`${inProj}.bias`]: zeros('F32', 246) } },
      'in_proj.bias',
    ],
    [
      'a weight of another shape',
      { config: { vocab_size: 65 } },
      'shape [65, 32]',
      'backbone.embeddings.weight',
      'BF16 [64, 32]',
    ],
    ['a linear weight of another shape', { config: { mamba_head_dim: 32 } }, 'shape [438, 32]', `"${inProj}.weight"`],
    [
      'a plain tensor of integers',
      { tensors: { ...microTensors(), 'backbone.norm_f.weight': zeros('I32', 32) } },
      'F32 or BF16 or F16',
      'I32',
    ],
    [
      'a weight of integers',
      { tensors: { ...microTensors(), [`${inProj}.weight`]: zeros('I8', 246, 32) } },
      'in_proj.weight',
      'I8',
    ],
    ['two prefixes', { tensors: { ...microTensors(), 'model.norm_f.weight': zeros('BF16', 32) } }, 'one prefix'],
    ['quantized tensors without a recipe', { tensors: nvfp4 }, inProj, 'not quantized', 'config.json', 'U8 [246, 16]'],
    [
      'a recipe without quantized tensors',
      { files: own },
      inProj,
      'NVFP4 (modelopt)',
      'hf_quant_config.json',
      'BF16 [246, 32]',
    ],
    ['the other kind of quantization', { tensors: quantized('fp8'), files: own }, inProj, 'NVFP4', 'F8_E4M3'],
    ['NVFP4 of the other naming', { tensors: quantized('nvfp4-packed'), files: own }, inProj, 'weight_packed'],
    [
      'an excluded module that is quantized',
      { tensors: nvfp4, files: modelopt('NVFP4', { exclude_modules: ['lm_head', inProj] }) },
      inProj,
      'not quantized',
    ],
    [
      'a quantized module that is not listed',
      {
        tensors: microTensors((m) => (m === inProj ? 'fp8' : 'bf16')),
        files: modelopt('MIXED_PRECISION', { quantized_layers: {} }),
      },
      inProj,
    ],
    [
      'missing block scales',
      { tensors: without(nvfp4, /in_proj.weight_scale$/), files: own },
      'in_proj.weight_scale" is missing',
    ],
    [
      'a missing scale',
      { tensors: without(nvfp4, /in_proj.weight_scale_2$/), files: own },
      'in_proj.weight_scale_2" is missing',
    ],
    [
      'block scales of another dtype',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale`]: zeros('U8', 246, 2) }, files: own },
      'F8_E4M3',
      'weight_scale',
    ],
    [
      'padded block scales',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale`]: zeros('F8_E4M3', 256, 4) }, files: own },
      'shape [246, 2]',
      '[256, 4]',
    ],
    [
      'two scales where one is expected',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([1, 1]) }, files: own },
      'one F32 scale',
      'weight_scale_2',
    ],
    [
      'an integer scale',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: zeros('I32') }, files: own },
      'one F32 scale',
      'I32',
    ],
    [
      'an empty scale',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: zeros('F32', 0) }, files: own },
      'one F32 scale',
    ],
    [
      'a scale that is NaN',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([Number.NaN]) }, files: own },
      'finite positive',
      'weight_scale_2',
      'NaN',
      'model.safetensors',
    ],
    [
      'a scale that is infinite',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([Number.POSITIVE_INFINITY]) }, files: own },
      'Infinity',
    ],
    ['a negative scale', { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([-1]) }, files: own }, '-1'],
    [
      'an input scale of 0',
      { tensors: { ...nvfp4, [`${inProj}.input_scale`]: f32([0]) }, files: own },
      'input_scale',
      'got 0',
    ],
    [
      'a reciprocal scale of 0',
      {
        config: nvfp4Packed,
        tensors: { ...quantized('nvfp4-packed'), [`${inProj}.weight_global_scale`]: f32([0], [1]) },
      },
      'weight_global_scale',
    ],
    [
      'a reciprocal scale beyond float32',
      {
        config: nvfp4Packed,
        tensors: { ...quantized('nvfp4-packed'), [`${inProj}.weight_global_scale`]: f32([1e-40], [1]) },
      },
      'weight_global_scale',
      'finite positive',
    ],
    [
      'an infinite reciprocal scale',
      {
        config: nvfp4Packed,
        tensors: {
          ...quantized('nvfp4-packed'),
          [`${inProj}.weight_global_scale`]: f32([Number.POSITIVE_INFINITY], [1]),
        },
      },
      'weight_global_scale',
      'got Infinity',
    ],
    [
      'a KV scale of 0',
      {
        tensors: {
          ...microTensors(),
          'backbone.layers.2.mixer.k_scale': f32([0]),
          'backbone.layers.2.mixer.v_scale': f32([1]),
        },
      },
      'k_scale',
    ],
    [
      'rows that blocks of 16 do not divide',
      { config: { moe_intermediate_size: 24 }, tensors: nvfp4, files: own },
      'experts.0',
      'shape [24, 16]',
    ],
    [
      'a stack with too few experts',
      { tensors: stacked('bf16'), config: { n_routed_experts: 5, n_group: 1 } },
      'gate.weight',
    ],
    [
      'a stack of another shape',
      { tensors: { ...stacked('bf16'), [`${experts}.up_proj.weight`]: zeros('BF16', 4, 32, 16) } },
      'shape [4, 16, 32]',
    ],
    [
      'a stack beside single experts',
      { tensors: { ...stacked('bf16'), ...microTensors() } },
      'unknown tensors',
      'experts.0',
    ],
    [
      'a stack with mixed formats',
      { tensors: stacked('nvfp4'), files: modelopt('NVFP4', { exclude_modules: ['lm_head', `${experts}.2.up_proj`] }) },
      'different formats',
      'experts.up_proj',
    ],
    [
      'a malformed generation config',
      { files: { 'generation_config.json': '{"top_p": ' } },
      'generation_config.json',
      'line 1',
    ],
    [
      'a generation config that is a list',
      { files: { 'generation_config.json': '[]' } },
      'generation_config.json',
      'JSON object',
    ],
    [
      'a temperature below 0',
      { files: { 'generation_config.json': { temperature: -1 } } },
      '`temperature`',
      'generation_config.json',
    ],
    ['a top_p of 0', { files: { 'generation_config.json': { top_p: 0 } } }, '`top_p`'],
    ['a top_k that is no integer', { files: { 'generation_config.json': { top_k: 1.5 } } }, '`top_k`'],
    ['a min_p above 1', { files: { 'generation_config.json': { min_p: 2 } } }, '`min_p`'],
    ['a penalty of 0', { files: { 'generation_config.json': { repetition_penalty: 0 } } }, '`repetition_penalty`'],
    ['do_sample that is no boolean', { files: { 'generation_config.json': { do_sample: 1 } } }, '`do_sample`'],
    [
      'a stop id outside the vocabulary',
      { files: { 'generation_config.json': { eos_token_id: [64] } } },
      '`eos_token_id`',
      '64',
    ],
    [
      'a malformed config',
      { files: { 'config.json': '{"model_type" "nemotron_h"}' } },
      'config.json',
      'line 1, column 15',
    ],
    ['a malformed sidecar', { files: { 'hf_quant_config.json': '{' } }, 'hf_quant_config.json'],
  ])('%s', async (_, parts, ...texts) => {
    await expectError(() => load(parts), 'BAD_FORMAT', ...texts)
  })

  it('inputs that blocks of 16 do not divide', async () => {
    const config = { mamba_num_heads: 3, mamba_head_dim: 8, n_groups: 1, layers_block_type: ['mamba'] }
    const base = without(nvfp4, /layers\.[123]/)
    const outProj = { 'backbone.layers.0.mixer.out_proj.weight': zeros('U8', 32, 12) }
    const checkpoint = await open({ config, tensors: { ...without(base, /out_proj/), ...outProj }, files: own })
    const run = () => checkpoint.linear('backbone.layers.0.mixer.out_proj', 32, 24)
    await expectError(run, 'BAD_FORMAT', 'a multiple of 16 inputs, got 24', 'out_proj')
  })

  it('other kinds of models', async () => {
    await expectError(() => open({ config: { model_type: 'llama' } }), 'UNSUPPORTED_MODEL', 'llama')
    const inner = renamed(microTensors(), /^/, 'language_model.')
    await expectError(() => open({ tensors: inner }), 'UNSUPPORTED_MODEL', 'language_model.')
    await expectError(() => open({ files: modelopt('NVFP4_AWQ') }), 'UNSUPPORTED_MODEL', 'NVFP4_AWQ')
  })

  it('folders that hold no model', async () => {
    const folder = await folderWith({ 'model.safetensors': buildSafetensors(microTensors()) })
    await expectError(() => Checkpoint.open(join(folder, 'missing')), 'MODEL_NOT_FOUND', 'missing')
    await expectError(() => Checkpoint.open(join(folder, 'model.safetensors')), 'MODEL_NOT_FOUND', 'no folder')
    await expectError(() => Checkpoint.open(folder), 'MODEL_NOT_FOUND', 'no config.json')
    const weightless = await folderWith({ 'config.json': microConfig })
    await expectError(() => Checkpoint.open(weightless), 'MODEL_NOT_FOUND', 'no .safetensors file')
  })

  it('to go on after an abort', async () => {
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(Checkpoint.open(await folderOf(), { signal })).rejects.toThrow('enough')
  })
})
