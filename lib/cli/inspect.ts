import type { Checkpoint } from '../checkpoint/checkpoint.js'
import { loadDefaults } from '../load-defaults.js'
import type { LayerKind } from '../models/config.js'
import type { Arguments } from './args.js'
import { type Command, type Context, takePositionals } from './command.js'
import { loadOptions, modelFlags } from './flags.js'

export const inspectCommand: Command = {
  name: 'inspect',
  usage: '<model> [--json]',
  summary: 'Shows layers, formats, sizes and the memory needed, without loading the weights.',
  details: [
    `Memory is for --context-length (default: the model's, at most ${loadDefaults.contextLength}), --kv-cache, --exact and`,
    '--max-batch. --device and --threads change nothing here.',
  ],
  flags: {
    json: { help: 'print JSON' },
    'max-batch': { value: 'N', help: `sequences computed at once (default ${loadDefaults.maxBatch})` },
    ...modelFlags,
  },
  run,
}

interface Inspection {
  folder: string
  layers: { total: number; kinds: Partial<Record<LayerKind, number>>; order: LayerKind[] }
  hiddenSize: number
  vocabularySize: number
  maxPositions: number
  quantization: { method: string; algorithm: string }
  parameters: number
  files: number
  bytes: number
  formats: Checkpoint['summary']['formats']
  memory: {
    contextLength: number
    maxBatch: number
    kvCache: 'fp8' | 'bf16' | 'f32'
    weights: number
    cache: number
    total: number
  }
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [name = ''] = takePositionals(args, ['model'])
  const load = loadOptions(args)
  const maxBatch = args.integer('max-batch', { min: 1, max: 512 }) ?? loadDefaults.maxBatch
  const { runtime, output, signal } = context
  const checkpoint = await runtime.openCheckpoint(await runtime.resolveModel(name), signal)
  const { config, summary, quantization } = checkpoint
  const contextLength = load.contextLength ?? Math.min(config.maxPositions, loadDefaults.contextLength)
  const exact = load.exact === true
  const kvCache = load.kvCache ?? 'fp8'
  const kinds: Partial<Record<LayerKind, number>> = {}
  for (const kind of config.layers) kinds[kind] = (kinds[kind] ?? 0) + 1
  const inspection: Inspection = {
    folder: checkpoint.folder,
    layers: { total: config.layers.length, kinds, order: [...config.layers] },
    hiddenSize: config.hiddenSize,
    vocabularySize: config.vocabSize,
    maxPositions: config.maxPositions,
    quantization: { method: quantization.method, algorithm: quantization.algorithm },
    parameters: summary.parameters,
    files: summary.files,
    bytes: summary.bytes,
    formats: summary.formats,
    memory: {
      contextLength,
      maxBatch,
      kvCache: exact ? 'f32' : kvCache,
      ...(await runtime.memoryNeeded(checkpoint, { contextLength, maxBatch, kvCache, exact })),
    },
  }
  await output.write(args.on('json') ? `${JSON.stringify(inspection, undefined, 2)}\n` : describe(inspection))
}

function megabytes(bytes: number): string {
  if (bytes < 1e5) return `${(bytes / 1e3).toFixed(1)} kB`
  return bytes < 1e10 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`
}

function millions(count: number): string {
  return count < 1e5 ? String(count) : `${(count / 1e6).toFixed(2)} M`
}

function describe(inspection: Inspection): string {
  const { layers, formats, memory, quantization } = inspection
  const kinds = Object.entries(layers.kinds).map(([kind, count]) => `${count} ${kind}`)
  const row = (name: string, value: string) => `${name.padEnd(14)}${value}\n`
  const formatRows = Object.entries(formats).map(([format, totals]) => {
    const parameters = `${millions(totals.parameters)} parameters`
    return row(
      `  ${format}`,
      `${parameters.padStart(24)}${megabytes(totals.bytes).padStart(12)}  in ${totals.tensors} tensors`,
    )
  })
  return [
    row('folder', inspection.folder),
    row('layers', `${layers.total}: ${kinds.join(', ')}`),
    row('width', `${inspection.hiddenSize}, vocabulary ${inspection.vocabularySize}`),
    row('context', `${inspection.maxPositions} at most`),
    row('quantization', [quantization.method, quantization.algorithm].filter((text) => text !== '').join(' ')),
    row('parameters', millions(inspection.parameters)),
    row('files', `${inspection.files}, ${megabytes(inspection.bytes)}`),
    row('formats', ''),
    ...formatRows,
    row('memory', `${megabytes(memory.total)}, and the temporaries of a step`),
    row('  weights', megabytes(memory.weights)),
    row(
      '  caches',
      `${megabytes(memory.cache)}: ${memory.maxBatch} sequences of ${memory.contextLength} tokens, ${memory.kvCache} cache`,
    ),
  ].join('')
}
