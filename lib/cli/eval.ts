import { type Arguments, UsageError } from './args.js'
import { type Command, type Context, takePositionals, withModel } from './command.js'
import { greedyNote, loadOptions, modelFlags, samplingFlags, samplingOptions } from './flags.js'
import { readText } from './read-input.js'
import type { CliModel } from './runtime.js'
import { answerOf, type Evaluation, parseTasks, type Score, Tally, type Task } from './tasks.js'

/** Tasks that run at once through the engine. */
const defaultBatch = 16
/** A model that loops would otherwise fill its context for each task that it fails. */
const defaultMaxTokens = 1024

export const evalCommand: Command = {
  name: 'eval',
  usage: '<model> --tasks FILE [--limit N] [--json]',
  summary: 'Measures how many tasks a model answers exactly.',
  details: [
    'The file holds JSON Lines with kind, thinking, prompt and answer. The prompt is used as it is, special tokens',
    'recognised; the answer is what follows the reasoning and must be equal.',
    `--json prints {"thinking": {"n", "exact"}, "direct": {"n", "exact"}, "kinds": {...}}, rates from 0 to 1.`,
    ...greedyNote,
  ],
  flags: {
    tasks: { value: 'FILE', help: 'the tasks; - is stdin' },
    limit: { value: 'N', help: 'only the first N tasks' },
    batch: { value: 'N', help: `tasks at once (default ${defaultBatch}); the result does not depend on it` },
    json: { help: 'print JSON instead of a table' },
    ...modelFlags,
    ...samplingFlags,
    'max-tokens': { value: 'N', help: `most tokens of one answer, reasoning included (default ${defaultMaxTokens})` },
  },
  run,
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [name = ''] = takePositionals(args, ['model'])
  const file = args.text('tasks')
  if (file === undefined) throw new UsageError('--tasks is missing: give a file with one JSON object a line.')
  const limit = args.integer('limit', { min: 1 })
  const batch = args.integer('batch', { min: 1, max: 256 }) ?? defaultBatch
  const load = { ...loadOptions(args), maxBatch: batch }
  const sampling = samplingOptions(args, 'greedy')
  const options = { ...sampling, maxTokens: sampling.maxTokens ?? defaultMaxTokens }
  const tasks = parseTasks(await readText(file, context), file === '-' ? 'stdin' : file, limit)
  const { output } = context
  const evaluation = await withModel(context, name, load, (model) => evaluate(model, tasks, batch, options, context))
  await output.write(args.on('json') ? `${JSON.stringify(evaluation)}\n` : table(evaluation))
}

/** Runs all tasks, `batch` at a time; the first failure stops the others and is thrown. */
async function evaluate(
  model: CliModel,
  tasks: readonly Task[],
  batch: number,
  options: NonNullable<Parameters<CliModel['complete']>[1]>,
  { progress, signal }: Context,
): Promise<Evaluation> {
  const tally = new Tally()
  const stop = new AbortController()
  const all = AbortSignal.any([signal, stop.signal])
  // One iterator, shared: each worker takes the next task that nobody has.
  const queue = tasks.values()
  const worker = async () => {
    for (const task of queue) {
      const { text } = await model.complete(task.prompt, { ...options, signal: all })
      tally.add(task, answerOf(text, task.thinking) === task.answer)
      const rate = `${((100 * tally.exact) / tally.done).toFixed(1)}% exact`
      progress.update('evaluating', tally.done, tasks.length, { extra: rate })
    }
  }
  const workers = Array.from({ length: Math.min(batch, tasks.length) }, worker)
  try {
    await Promise.all(workers)
  } catch (error) {
    stop.abort(error)
    await Promise.allSettled(workers)
    throw error
  } finally {
    progress.clear()
  }
  return tally.evaluation
}

function table({ thinking, direct, kinds }: Evaluation): string {
  const cell = (score: Score | undefined) =>
    (score === undefined || score.n === 0 ? '-' : `${(100 * score.exact).toFixed(2)}% of ${score.n}`).padStart(16)
  const row = (name: string, a: Score | undefined, b: Score | undefined) => `${name.padEnd(12)}${cell(a)}${cell(b)}\n`
  const head = `${'kind'.padEnd(12)}${'thinking'.padStart(16)}${'direct'.padStart(16)}\n`
  const rows = Object.entries(kinds).map(([name, score]) => row(name, score.thinking, score.direct))
  return head + rows.join('') + row('all', thinking, direct)
}
