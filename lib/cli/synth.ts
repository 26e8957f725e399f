import type { Arguments } from './args.js'
import { type Command, type Context, takePositionals } from './command.js'

export const synthCommand: Command = {
  name: 'synth',
  usage: '<preset> <folder> [--relu-zeros X] [--seed N] [--force]',
  summary: 'Writes a checkpoint of random weights, with the shapes and formats of a real one.',
  details: [
    'Presets: nano-30b (19.3 GB), nano-2b (1.6 GB), nano-micro (4 MB). The files hold the very bytes that the model name',
    'synthetic:<preset> loads without any file; there is no tokenizer. The folder appears under its name when it is complete.',
  ],
  flags: {
    'relu-zeros': { value: 'X', help: 'share of the activations after relu² that are zero (default 0.907)' },
    seed: { value: 'N', help: 'seed of the weights (default 0); the same seed gives the same bytes' },
    threads: { value: 'N', help: 'threads of the CPU (default: its physical cores)' },
    force: { help: 'replace an existing output' },
  },
  run,
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [preset = '', out = ''] = takePositionals(args, ['preset', 'folder'])
  const reluZeros = args.number('relu-zeros', { min: 0.01, max: 0.99 })
  const seed = args.integer('seed', { min: 0 })
  const threads = args.integer('threads', { min: 1, max: 1024 })
  const { runtime, output, progress, signal } = context
  try {
    await runtime.synthesize(preset, out, {
      ...(reluZeros === undefined ? {} : { reluZeros }),
      ...(seed === undefined ? {} : { seed }),
      ...(threads === undefined ? {} : { threads }),
      force: args.on('force'),
      signal,
      onProgress: ({ loaded, total }) => progress.update('writing', loaded, total, { bytes: true }),
    })
  } finally {
    progress.clear()
  }
  output.note(`Wrote ${out}.\n`)
}
