import { type Arguments, UsageError } from './args.js'
import { type Command, type Context, withModel } from './command.js'
import { chatOptions, greedyNote, loadOptions, modelFlags, textFlags } from './flags.js'
import { converse } from './interactive.js'
import { printOneTurn } from './print-reply.js'
import { readStdin, withoutLastBreak } from './read-input.js'

export const chatCommand: Command = {
  name: 'chat',
  usage: '[model=tiny] [prompt]',
  summary: 'Answers one prompt, or talks with you when there is none.',
  details: [
    'A lone argument is the model. Without a prompt, one is read from stdin when that is no terminal; otherwise the',
    'conversation is interactive: Ctrl-C stops an answer, Ctrl-D ends the conversation.',
    'The answer goes to stdout. Reasoning is dimmed: beside the answer on a terminal, else on stderr.',
    'An interactive conversation is sampled as the checkpoint suggests. One turn:',
    ...greedyNote,
  ],
  flags: { ...modelFlags, ...textFlags },
  run,
}

async function run(args: Arguments, context: Context): Promise<number | undefined> {
  const [name = 'tiny', given, surplus] = args.positionals
  if (surplus !== undefined) {
    throw new UsageError(`'${surplus}' is one argument too many. Quote a prompt that has spaces.`)
  }
  const load = loadOptions(args)
  const interactive = given === undefined && context.io.stdin.isTTY === true
  const options = chatOptions(args, interactive ? 'checkpoint' : 'greedy')
  if (interactive) return withModel(context, name, load, (model) => converse(model, options, context))

  const prompt = given ?? withoutLastBreak(await readStdin(context))
  if (prompt === '') throw new UsageError('The prompt is empty. Give one as the second argument or on stdin.')
  await withModel(context, name, load, (model) =>
    printOneTurn(model.chat(prompt, { ...options, signal: context.signal }), context.output),
  )
  return 0
}
