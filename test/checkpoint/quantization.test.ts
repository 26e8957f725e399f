import { describe, expect, it } from 'vitest'
import type { JsonObject } from '../../lib/checkpoint/config-json.js'
import { readQuantization } from '../../lib/checkpoint/quantization.js'
import { expectError } from '../helpers/expect-error.js'

type Json = Record<string, unknown>

function read(embedded: Json | undefined, sidecar?: Json) {
  const json = (embedded ? { quantization_config: embedded } : {}) as JsonObject
  const side = sidecar && { json: { quantization: sidecar } as unknown as JsonObject, file: 'hf_quant_config.json' }
  return readQuantization({ json, file: 'config.json' }, side)
}

const formats = (recipe: ReturnType<typeof read>, modules: readonly string[]) =>
  modules.map((module) => recipe.formatOf(module).format)

const inProj = (layer: number) => `backbone.layers.${layer}.mixer.in_proj`
const float = { num_bits: 8, type: 'float', dynamic: false }
const nvfp4Weights = { num_bits: 4, type: 'float', strategy: 'tensor_group', group_size: 16, symmetric: true }
const fp8Weights = { num_bits: 8, type: 'float', strategy: 'tensor', symmetric: true }
const packed = (changes: Json = {}, group: Json = {}, weights: Json = {}) => ({
  quant_method: 'compressed-tensors',
  format: 'nvfp4-pack-quantized',
  quantization_status: 'compressed',
  config_groups: { group_0: { targets: ['Linear'], weights: { ...nvfp4Weights, ...weights }, ...group } },
  ignore: ['lm_head'],
  ...changes,
})

describe('readQuantization', () => {
  it('finds nothing in a plain config', () => {
    const recipe = read(undefined)
    expect(recipe).toMatchObject({ method: 'none', algorithm: '', kvCache: undefined })
    expect(recipe.formatOf('lm_head')).toEqual({ format: 'none' })
  })

  it('reads the sidecar of the Nano NVFP4 release', () => {
    const recipe = read(undefined, {
      quant_algo: 'NVFP4',
      kv_cache_quant_algo: 'FP8',
      group_size: 16,
      exclude_modules: ['lm_head', inProj(4), 'backbone.layers.5.mixer.q_proj', 'backbone.layers.0.mixer.conv1d'],
    })
    expect(recipe).toMatchObject({
      method: 'modelopt',
      algorithm: 'NVFP4',
      kvCache: 'fp8',
      file: 'hf_quant_config.json',
    })
    expect(recipe.formatOf(inProj(0))).toEqual({ format: 'nvfp4', naming: 'modelopt' })
    const modules = [
      'lm_head',
      inProj(4),
      'backbone.layers.5.mixer.q_proj',
      inProj(40),
      'backbone.layers.4.mixer.out_proj',
    ]
    expect(formats(recipe, modules)).toEqual(['none', 'none', 'none', 'nvfp4', 'nvfp4'])
  })

  it('reads the embedded form with wildcards', () => {
    const recipe = read({
      quant_method: 'modelopt',
      quant_algo: 'FP8',
      kv_cache_scheme: float,
      config_groups: { group_0: { weights: float, input_activations: float, targets: ['Linear'] } },
      ignore: [
        'lm_head',
        'model.layers.1?.mixer.*',
        '*.out_proj',
        'backbone.layers.[3-5].mixer.in_proj',
        'backbone.layers.[!0-8].mixer.k_proj',
      ],
      producer: { name: 'modelopt', version: '0.39.0' },
    })
    expect(recipe).toMatchObject({ method: 'modelopt', algorithm: 'FP8', kvCache: 'fp8', file: 'config.json' })
    expect(recipe.formatOf(inProj(1))).toEqual({ format: 'fp8', scales: 'tensor' })
    const modules = [
      inProj(12),
      inProj(4),
      inProj(6),
      'backbone.layers.6.mixer.out_proj',
      'backbone.layers.9.mixer.k_proj',
      'backbone.layers.8.mixer.k_proj',
    ]
    expect(formats(recipe, modules)).toEqual(['none', 'none', 'fp8', 'none', 'none', 'fp8'])
  })

  it('takes the dots and brackets of a name literally, and a holder for what it holds', () => {
    const recipe = read(undefined, {
      quant_algo: 'FP8',
      exclude_modules: ['backbone.layers.5.mixer', 'backbone.layers.*.mixer.k+proj', 'lm.head'],
    })
    const modules = [
      'backbone.layers.5.mixer.q_proj',
      'backbone.layers.50.mixer.q_proj',
      'backbone.layers.1.mixer.kkproj',
      'lm_head',
    ]
    expect(formats(recipe, modules)).toEqual(['none', 'fp8', 'fp8', 'fp8'])
  })

  it('reads MIXED_PRECISION, where what is listed is quantized', () => {
    const recipe = read({
      quant_method: 'modelopt',
      quant_algo: 'MIXED_PRECISION',
      kv_cache_scheme: 'FP8',
      quantized_layers: {
        'model.layers.0.mixer.in_proj': { quant_algo: 'FP8' },
        'backbone.layers.1.mixer.experts': { quant_algo: 'W4A16_NVFP4', group_size: 16 },
        lm_head: { quant_algo: 'NVFP4', group_size: 16 },
      },
      ignore: ['lm_head'],
    })
    expect(recipe).toMatchObject({ algorithm: 'MIXED_PRECISION', kvCache: 'fp8' })
    const modules = [inProj(0), 'backbone.layers.1.mixer.experts.3.up_proj', 'lm_head', inProj(1)]
    expect(formats(recipe, modules)).toEqual(['fp8', 'nvfp4', 'nvfp4', 'none'])
  })

  it('reads compressed-tensors NVFP4 with names and expressions', () => {
    const recipe = read(
      packed({
        ignore: ['lm_head', 're:.*out_proj$', 're:model\\.layers\\.3\\..*', 'backbone.layers.4.mixer.in_proj'],
      }),
    )
    expect(recipe).toMatchObject({
      method: 'compressed-tensors',
      algorithm: 'nvfp4-pack-quantized',
      kvCache: undefined,
    })
    expect(recipe.formatOf(inProj(0))).toEqual({ format: 'nvfp4', naming: 'compressed-tensors' })
    const modules = [
      'lm_head',
      'backbone.layers.0.mixer.out_proj',
      inProj(3),
      inProj(4),
      inProj(33),
      'backbone.layers.0.mixer.out_proj_x',
    ]
    expect(formats(recipe, modules)).toEqual(['none', 'none', 'none', 'none', 'nvfp4', 'nvfp4'])
  })

  it('reads compressed-tensors FP8, and groups of different formats in order', () => {
    const group = (targets: string[], weights: Json, format?: string) => ({
      targets,
      weights,
      ...(format && { format }),
    })
    const recipe = read({
      quant_method: 'compressed-tensors',
      format: 'mixed-precision',
      kv_cache_scheme: float,
      config_groups: {
        group_0: group(['re:.*experts.*'], nvfp4Weights, 'nvfp4-pack-quantized'),
        group_1: group([inProj(0)], { ...fp8Weights, strategy: 'channel' }, 'float-quantized'),
        group_2: group(['Linear'], fp8Weights, 'float-quantized'),
      },
      ignore: [],
    })
    expect(recipe.kvCache).toBe('fp8')
    expect(recipe.formatOf('backbone.layers.1.mixer.experts.0.up_proj').format).toBe('nvfp4')
    expect(recipe.formatOf(inProj(0))).toEqual({ format: 'fp8', scales: 'channel' })
    expect(recipe.formatOf(inProj(1))).toEqual({ format: 'fp8', scales: 'tensor' })
  })

  it('reads both files when they agree', () => {
    const embedded = { quant_method: 'modelopt', quant_algo: 'NVFP4', ignore: ['lm_head'] }
    const recipe = read(embedded, { quant_algo: 'NVFP4', exclude_modules: ['lm_head', inProj(0)] })
    expect(formats(recipe, [inProj(0), inProj(1)])).toEqual(['none', 'nvfp4'])
  })

  it('takes a sidecar without an algorithm as not quantized', () => {
    const recipe = read(undefined, { quant_algo: null, kv_cache_quant_algo: 'FP8' })
    expect(recipe).toMatchObject({ method: 'modelopt', kvCache: 'fp8' })
    expect(recipe.formatOf(inProj(0)).format).toBe('none')
  })

  it.each<[string, Json | undefined, Json | undefined, ...string[]]>([
    ['an algorithm', undefined, { quant_algo: 'NVFP4_AWQ' }, 'quant_algo', 'NVFP4_AWQ', 'hf_quant_config.json'],
    [
      'an embedded algorithm',
      { quant_method: 'modelopt', quant_algo: 'INT4' },
      undefined,
      'quant_algo',
      'INT4',
      'config.json',
    ],
    [
      'an algorithm of a layer',
      undefined,
      { quant_algo: 'MIXED_PRECISION', quantized_layers: { a: { quant_algo: 'MXFP8' } } },
      'quantized_layers.a.quant_algo',
      'MXFP8',
    ],
    ['a method', { quant_method: 'bitsandbytes' }, undefined, 'quant_method', 'bitsandbytes'],
    ['a block size', undefined, { quant_algo: 'NVFP4', group_size: 32 }, 'group_size', '32', 'blocks of 16'],
    [
      'a block size in a group',
      { quant_method: 'modelopt', quant_algo: 'NVFP4', config_groups: { g: { weights: { group_size: 64 } } } },
      undefined,
      'config_groups.g.weights.group_size',
    ],
    [
      'a KV algorithm',
      undefined,
      { quant_algo: 'NVFP4', kv_cache_quant_algo: 'NVFP4' },
      'kv_cache_quant_algo',
      'NVFP4',
    ],
    [
      'a KV scheme',
      { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_scheme: { num_bits: 8, type: 'int' } },
      undefined,
      '8-bit int',
    ],
    [
      'a named KV scheme',
      { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_scheme: 'NVFP4' },
      undefined,
      'kv_cache_scheme',
      'NVFP4',
    ],
    ['a container', packed({ format: 'pack-quantized' }), undefined, 'format', 'pack-quantized'],
    ['a container of a group', packed({}, { format: 'mxfp4-pack-quantized' }), undefined, 'mxfp4-pack-quantized'],
    ['integer weights', packed({}, {}, { type: 'int' }), undefined, 'weights.type', 'int'],
    ['asymmetric weights', packed({}, {}, { symmetric: false }), undefined, 'symmetric'],
    ['another width', packed({}, {}, { num_bits: 8 }), undefined, 'num_bits', '8'],
    ['another strategy', packed({}, {}, { strategy: 'group' }), undefined, 'strategy', 'group'],
    ['blocks of 32', packed({}, {}, { group_size: 32 }), undefined, 'group_size', '32'],
    [
      'FP8 in blocks',
      packed({ format: 'float-quantized' }, {}, { ...fp8Weights, strategy: 'block' }),
      undefined,
      'strategy',
      'block',
    ],
    [
      'a checkpoint that is not compressed',
      packed({ quantization_status: 'frozen' }),
      undefined,
      'quantization_status',
    ],
    ['transforms', packed({ transform_config: { config_groups: {} } }), undefined, 'transform_config'],
    ['sparse weights', packed({ sparsity_config: { format: 'sparse-24-bitmask' } }), undefined, 'sparse-24-bitmask'],
  ])('does not run %s that it does not know', async (_, embedded, sidecar, ...texts) => {
    await expectError(() => read(embedded, sidecar), 'UNSUPPORTED_MODEL', ...texts)
  })

  it.each<[string, Json | undefined, Json | undefined, ...string[]]>([
    ['a method that is missing', {}, undefined, 'quant_method'],
    ['an algorithm that is no string', undefined, { quant_algo: 4 }, 'quant_algo'],
    ['exclusions that are no list', undefined, { quant_algo: 'FP8', exclude_modules: 'lm_head' }, 'exclude_modules'],
    ['exclusions that are no strings', undefined, { quant_algo: 'FP8', exclude_modules: [1] }, 'exclude_modules'],
    ['a bad set in a wildcard', undefined, { quant_algo: 'FP8', exclude_modules: ['a[z-b]'] }, 'a[z-b]'],
    ['no layers', undefined, { quant_algo: 'MIXED_PRECISION' }, 'quantized_layers'],
    [
      'a layer that is no object',
      undefined,
      { quant_algo: 'MIXED_PRECISION', quantized_layers: { a: 'FP8' } },
      'quantized_layers.a',
    ],
    [
      'a layer that is null',
      undefined,
      { quant_algo: 'MIXED_PRECISION', quantized_layers: { a: null } },
      'quantized_layers.a',
    ],
    ['no groups', packed({ config_groups: {} }), undefined, 'config_groups'],
    ['a group without weights', packed({}, { weights: null }), undefined, 'config_groups.group_0.weights'],
    ['a group without targets', packed({}, { targets: undefined }), undefined, 'config_groups.group_0.targets'],
    ['a bad expression', packed({ ignore: ['re:(['] }), undefined, 're:(['],
    ['a missing format', packed({ format: undefined }), undefined, '`quantization_config.format`'],
    [
      'two files that disagree',
      { quant_method: 'modelopt', quant_algo: 'FP8' },
      { quant_algo: 'NVFP4' },
      'FP8',
      'NVFP4',
      'hf_quant_config.json',
    ],
  ])('refuses %s', async (_, embedded, sidecar, ...texts) => {
    await expectError(() => read(embedded, sidecar), 'BAD_FORMAT', ...texts)
  })

  it('refuses a sidecar without its object', async () => {
    const sidecar = { json: {} as JsonObject, file: 'hf_quant_config.json' }
    await expectError(() => readQuantization({ json: {}, file: 'config.json' }, sidecar), 'BAD_FORMAT', 'quantization')
  })
})
