import { describe, expect, it } from 'vitest'
import {
  compressed,
  experts,
  inProj,
  load,
  modelopt,
  nvfp4Packed,
  open,
  type Parts,
  quantized,
  renamed,
  stacked,
  without,
} from '../helpers/checkpoint-parts.js'
import { expectError } from '../helpers/expect-error.js'
import { microLinears, microTensors, type StoredFormat, takeAll } from '../helpers/micro-checkpoint.js'
import { f32, zeros } from '../helpers/safetensors.js'

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
