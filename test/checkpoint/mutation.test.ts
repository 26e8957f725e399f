import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { NibbletError } from '../../lib/errors.js'
import { microConfig, microTensors, takeAll } from '../helpers/micro-checkpoint.js'
import { mutateBytes, mutateText, randomOf } from '../helpers/mutate.js'
import { buildSafetensors, folderWith, headerOf, rawSafetensors } from '../helpers/safetensors.js'

const seed = 20261122

const excluded = {
  quantization: {
    quant_algo: 'NVFP4',
    kv_cache_quant_algo: 'FP8',
    group_size: 16,
    exclude_modules: ['lm_head', '*.q_proj'],
  },
}
const mixed = {
  quant_method: 'modelopt',
  quant_algo: 'MIXED_PRECISION',
  quantized_layers: {
    'backbone.layers.0.mixer.in_proj': { quant_algo: 'FP8' },
    'backbone.layers.1.mixer.experts': { quant_algo: 'W4A16_NVFP4', group_size: 16 },
  },
}
const packed = {
  quant_method: 'compressed-tensors',
  format: 'nvfp4-pack-quantized',
  kv_cache_scheme: { num_bits: 8, type: 'float' },
  config_groups: {
    group_0: {
      targets: ['Linear'],
      weights: { num_bits: 4, type: 'float', strategy: 'tensor_group', group_size: 16, symmetric: true },
    },
  },
  ignore: ['lm_head', 're:.*out_proj$'],
}
const old = { ...microConfig, layers_block_type: undefined, hybrid_override_pattern: 'ME*-', num_hidden_layers: 4 }
// Bare Infinity, which JSON.stringify cannot write.
const oldText = JSON.stringify(old).replace('{"__float__":"Infinity"}', 'Infinity')

const tensors = {
  excluded: microTensors((module) => (/lm_head|q_proj/.test(module) ? 'bf16' : 'nvfp4')),
  mixed: microTensors((module) => {
    return module.includes('.experts.') ? 'nvfp4' : module.endsWith('layers.0.mixer.in_proj') ? 'fp8' : 'bf16'
  }),
  packed: microTensors((module) => (/lm_head|out_proj/.test(module) ? 'bf16' : 'nvfp4-packed')),
}

interface Subject {
  name: keyof typeof tensors
  files: Record<string, string | object>
}

const subjects: readonly Subject[] = [
  { name: 'excluded', files: { 'config.json': oldText, 'hf_quant_config.json': excluded } },
  { name: 'mixed', files: { 'config.json': { ...microConfig, quantization_config: mixed } } },
  { name: 'packed', files: { 'config.json': { ...microConfig, quantization_config: packed } } },
]
const generation = { bos_token_id: 1, eos_token_id: [2, 11], do_sample: true, temperature: 0.6, top_p: 0.95, top_k: 20 }

/** Opens a folder as a loader does: true when it loads, false when it fails as it should. */
async function loads(folder: string, context: string): Promise<boolean> {
  try {
    takeAll(await Checkpoint.open(folder))
    return true
  } catch (error) {
    if (NibbletError.is(error) && error.message.length > 20) return false
    throw new Error(`${context}: an error that is not typed`, { cause: error })
  }
}

async function folderOf({ name, files }: Subject): Promise<string> {
  const index = Object.fromEntries(Object.keys(tensors[name]).map((tensor) => [tensor, 'model.safetensors']))
  return folderWith({
    ...files,
    'generation_config.json': generation,
    'model.safetensors.index.json': { metadata: { total_size: 1 }, weight_map: index },
    'model.safetensors': buildSafetensors(tensors[name]),
  })
}

describe('mutated model files load or fail with a typed error', () => {
  it('the subjects load as they are', async () => {
    for (const subject of subjects) expect(await loads(await folderOf(subject), subject.name)).toBe(true)
  })

  it('1,002 safetensors headers', async () => {
    const random = randomOf(seed)
    const outcomes = { loaded: 0, failed: 0 }
    for (const subject of subjects) {
      const file = join(await folderOf(subject), 'model.safetensors')
      const text = JSON.stringify(headerOf(tensors[subject.name]))
      const whole = buildSafetensors(tensors[subject.name])
      const head = whole.slice(0, 8 + text.length)
      const data = whole.slice(8 + text.length)
      for (let run = 0; run < 334; run++) {
        const within = run % 4 === 1 ? 8 : head.length
        const mutant =
          run % 2 === 0
            ? rawSafetensors(mutateText(text, random), data)
            : Buffer.concat([mutateBytes(head, random, within), data])
        await writeFile(file, mutant)
        const context = `seed ${seed}, ${subject.name}, header ${run}`
        outcomes[(await loads(join(file, '..'), context)) ? 'loaded' : 'failed']++
      }
    }
    expect(outcomes.failed, `seed ${seed}`).toBeGreaterThan(700)
  })

  it('1,002 configs, sidecars, indexes and generation configs', async () => {
    const random = randomOf(seed + 1)
    const outcomes = { loaded: 0, failed: 0 }
    for (const subject of subjects) {
      const folder = await folderOf(subject)
      const index = Object.fromEntries(
        Object.keys(tensors[subject.name]).map((tensor) => [tensor, 'model.safetensors']),
      )
      const files: [string, string | object][] = [
        ...Object.entries(subject.files),
        ['generation_config.json', generation],
        ['model.safetensors.index.json', { metadata: { total_size: 1 }, weight_map: index }],
      ]
      for (let run = 0; run < 334; run++) {
        // The config has by far the most fields.
        const [name, content] = files[run % 2 === 0 ? 0 : (run >> 1) % files.length] as [string, string | object]
        const text = typeof content === 'string' ? content : JSON.stringify(content, null, run % 3)
        const mutant = run % 5 === 4 ? mutateBytes(new TextEncoder().encode(text), random) : mutateText(text, random)
        await writeFile(join(folder, name), mutant)
        const context = `seed ${seed + 1}, ${subject.name}, ${name} ${run}`
        outcomes[(await loads(folder, context)) ? 'loaded' : 'failed']++
        await writeFile(join(folder, name), text)
      }
    }
    expect(outcomes.loaded, `seed ${seed + 1}`).toBeGreaterThan(50)
    expect(outcomes.failed, `seed ${seed + 1}`).toBeGreaterThan(300)
  })
})
