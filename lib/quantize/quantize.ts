import { mkdir, open, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Checkpoint, type TensorRef } from '../checkpoint/checkpoint.js'
import { type SafetensorsEntry, writeShards } from '../checkpoint/safetensors-writer.js'
import { Device } from '../core/device.js'
import { ModelError, RequestError } from '../errors.js'
import { readPlainFile } from '../plain-file.js'
import { packageVersion } from '../version.js'
import { Nvfp4Quantizer } from './nvfp4.js'
import { nanoRecipe, type QuantizationPlan } from './recipe.js'

export interface QuantizeOptions {
  format: 'nvfp4'
  /** Replace an existing output. Default false. */
  force?: boolean
  /** CPU threads. Default: physical cores. */
  threads?: number
  signal?: AbortSignal
  onProgress?: (progress: { loaded: number; total: number }) => void
}

export interface QuantizeResult {
  folder: string
  /** Matrices that became NVFP4. */
  matrices: number
  /** Bytes of tensors, before and after. */
  bytesBefore: number
  bytesAfter: number
}

/** Files beside the weights that belong to a checkpoint. */
const companions = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
]

const companionLimit = 1 << 28

async function readCompanion(path: string): Promise<Uint8Array> {
  return readPlainFile(path, companionLimit).catch((cause: Error) => {
    throw new ModelError('BAD_FORMAT', `cannot copy ${path}: ${cause.message}. Replace or remove it.`, { cause })
  })
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined
}

/**
 * Post-training weight quantisation of a high-precision checkpoint to NVFP4 in ModelOpt's layout, with the Nano release's
 * recipe (`nanoRecipe`). Weights only: no activation scales are written. Tensors that stay are copied bit for bit. The output
 * is built beside its place and renamed at the end, so that a failed run leaves nothing behind and an existing output intact.
 *
 * @throws ModelError OUTPUT_EXISTS without `force`; UNSUPPORTED_MODEL when the input is quantised already; BAD_FORMAT for NaN
 * or infinity in a weight
 */
export async function quantizeCheckpoint(
  folder: string,
  out: string,
  options: QuantizeOptions,
): Promise<QuantizeResult> {
  if (options.format !== 'nvfp4') {
    throw new RequestError('INVALID_OPTION', `expected 'nvfp4' for \`format\`, got '${options.format}'`, {
      details: { option: 'format' },
    })
  }
  const target = resolve(out)
  if (target === resolve(folder)) {
    throw new RequestError('INVALID_OPTION', 'the output folder is the input folder: choose another', {
      details: { option: 'out' },
    })
  }
  if (!options.force && (await exists(target))) {
    throw new ModelError('OUTPUT_EXISTS', `${target} exists; pass --force (or \`force: true\`) to replace it`)
  }
  const checkpoint = await Checkpoint.open(folder, options.signal ? { signal: options.signal } : {})
  if (checkpoint.quantization.method !== 'none') {
    throw new ModelError(
      'UNSUPPORTED_MODEL',
      `${checkpoint.folder} is quantised already (${checkpoint.quantization.algorithm}); start from a BF16 checkpoint`,
    )
  }
  const aside = `${target}.partial-${process.pid}`
  const stream = Device.open('cpu').stream(options.threads === undefined ? {} : { threads: options.threads })
  const quantizer = new Nvfp4Quantizer(stream)
  try {
    await mkdir(aside, { recursive: true })
    const plan = nanoRecipe(checkpoint.config)
    const { entries, matrices } = collect(checkpoint, plan, quantizer)
    const files = await writeShards(aside, entries, {
      ...(options.signal && { signal: options.signal }),
      onProgress: (loaded, total) => options.onProgress?.({ loaded, total }),
    })
    for (const name of companions) {
      // Read and written rather than copied: a read-only source must not make a read-only checkpoint.
      if (await exists(join(folder, name))) await writeFile(join(aside, name), await readCompanion(join(folder, name)))
    }
    await writeFile(join(aside, 'hf_quant_config.json'), sidecar(plan))
    if (options.force) await rm(target, { recursive: true, force: true })
    await rename(aside, target)
    const bytesAfter = files.reduce((sum, file) => sum + file.bytes, 0)
    return { folder: target, matrices, bytesBefore: checkpoint.bytes, bytesAfter }
  } finally {
    quantizer.dispose()
    stream.dispose()
    await rm(aside, { recursive: true, force: true })
  }
}

function collect(
  checkpoint: Checkpoint,
  plan: QuantizationPlan,
  quantizer: Nvfp4Quantizer,
): { entries: SafetensorsEntry[]; matrices: number } {
  const entries: SafetensorsEntry[] = []
  let matrices = 0
  for (const { module, experts, out, in: inputs } of plan.quantized) {
    const sources = experts
      ? checkpoint.experts(experts.prefix, experts.projection, experts.count, out, inputs)
      : [checkpoint.linear(module, out, inputs)]
    for (const [index, source] of sources.entries()) {
      const name = experts ? `${experts.prefix}.${index}.${experts.projection}` : module
      entries.push(...quantizer.entries(name, source))
      if (source.bias) entries.push(copyOf(`${name}.bias`, source.bias))
      matrices += 1
    }
  }
  for (const name of checkpoint.unusedTensors()) entries.push(copyOf(name, checkpoint.tensor(name)))
  return { entries, matrices }
}

function copyOf(name: string, ref: TensorRef): SafetensorsEntry {
  return { name, dtype: ref.dtype, shape: ref.shape, data: () => readRange(ref) }
}

async function readRange({ file, offset, bytes }: TensorRef): Promise<Uint8Array> {
  const handle = await open(file)
  try {
    const data = new Uint8Array(bytes)
    for (let done = 0; done < bytes; ) {
      const { bytesRead } = await handle.read(data, done, bytes - done, offset + done)
      if (bytesRead === 0) throw new ModelError('BAD_FORMAT', `${file} is truncated; download it again`)
      done += bytesRead
    }
    return data
  } finally {
    await handle.close()
  }
}

function sidecar(plan: QuantizationPlan): string {
  const recipe = {
    producer: { name: 'nibblet', version: packageVersion },
    quantization: {
      quant_algo: 'NVFP4',
      kv_cache_quant_algo: 'FP8',
      group_size: 16,
      exclude_modules: plan.excluded,
    },
  }
  return `${JSON.stringify(recipe, null, 2)}\n`
}
