import { resolve } from 'node:path'
import { type Arguments, UsageError } from './args.js'
import { type Command, type Context, takePositionals } from './command.js'

export const quantizeCommand: Command = {
  name: 'quantize',
  usage: '<in> <out> --format nvfp4 [--force]',
  summary: 'Writes a BF16 checkpoint as a four-bit one.',
  details: [
    "Weights only, in ModelOpt's layout with the selective recipe of the Nemotron-3-Nano release: attention, the Mamba",
    'layers in front of it, embeddings, head, convolutions and router keep their precision.',
    'The output appears under its name when it is complete.',
  ],
  flags: {
    format: { value: 'FORMAT', help: 'nvfp4' },
    force: { help: 'replace an existing output' },
  },
  run,
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [input = '', out = ''] = takePositionals(args, ['in', 'out'])
  const format = args.choice('format', ['nvfp4'])
  if (format === undefined) throw new UsageError('--format is missing: give --format nvfp4.')
  const { runtime, output, progress, signal } = context
  const folder = await runtime.resolveModel(input)
  if (resolve(folder) === resolve(out)) throw new UsageError('<in> and <out> are the same folder.')
  try {
    await runtime.quantize(folder, out, {
      format,
      force: args.on('force'),
      signal,
      onProgress: ({ loaded, total }) => progress.update('quantizing', loaded, total, { bytes: true }),
    })
  } finally {
    progress.clear()
  }
  output.note(`Wrote ${out}.\n`)
}
