import type { Reply } from '../generate/index.js'
import { type Arguments, UsageError } from './args.js'
import { type Command, type Context, takePositionals, withModel } from './command.js'
import { chatOptions, greedyNote, loadOptions, modelFlags, samplingOptions, textFlags } from './flags.js'
import { printOneTurn } from './print-reply.js'
import { readText, withoutLastBreak } from './read-input.js'

export const generateCommand: Command = {
  name: 'generate',
  usage: '<model> (--prompt TEXT | --prompt-file FILE)',
  summary: 'Generates from one prompt, for scripts.',
  details: [
    'The prompt is a user message; the line break at the end of a file is not part of it. With --raw it is the exact',
    'text to continue: no template, no token added, special tokens recognised.',
    ...greedyNote,
  ],
  flags: {
    prompt: { value: 'TEXT', help: 'the prompt' },
    'prompt-file': { value: 'FILE', help: 'file that holds the prompt; - is stdin' },
    raw: { help: 'continue the text as it is, without the chat template' },
    json: { help: 'print the whole reply as JSON instead of the answer' },
    logprobs: { value: 'N', help: 'with --json: log probabilities, each with N alternatives, 0 to 20' },
    ...modelFlags,
    ...textFlags,
  },
  run,
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [name = ''] = takePositionals(args, ['model'])
  const load = loadOptions(args)
  const raw = args.on('raw')
  if (raw && (args.on('no-thinking') || args.has('thinking-budget'))) {
    throw new UsageError(
      '--raw has no template that opens a think block: leave --no-thinking and --thinking-budget out.',
    )
  }
  const logprobs = args.integer('logprobs', { min: 0, max: 20 })
  const json = args.on('json')
  if (logprobs !== undefined && !json) throw new UsageError('--logprobs are part of the whole reply: add --json.')
  const options = { ...(raw ? samplingOptions(args, 'greedy') : chatOptions(args, 'greedy')), logprobs }

  const prompt = await readPrompt(args, raw, context)
  await withModel(context, name, load, async (model) => {
    const all = { ...options, signal: context.signal }
    const stream = raw ? model.complete(prompt, all) : model.chat(prompt, all)
    if (json) await context.output.write(`${replyJson(await stream)}\n`)
    else await printOneTurn(stream, context.output)
  })
}

async function readPrompt(args: Arguments, raw: boolean, context: Context): Promise<string> {
  const [text, file] = [args.text('prompt'), args.text('prompt-file')]
  if ((text === undefined) === (file === undefined)) {
    throw new UsageError('Give the prompt either as --prompt TEXT or as --prompt-file FILE (- for stdin).')
  }
  let prompt = text ?? (await readText(file ?? '', context))
  if (text === undefined && !raw) prompt = withoutLastBreak(prompt)
  if (prompt === '') throw new UsageError('The prompt is empty.')
  return prompt
}

function replyJson(reply: Reply): string {
  return JSON.stringify({ ...reply, ids: Array.from(reply.ids) }, undefined, 2)
}
