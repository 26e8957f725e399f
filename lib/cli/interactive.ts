import { createInterface } from 'node:readline'
import { NibbletError } from '../errors.js'
import type { ChatOptions } from '../generate/index.js'
import type { Message } from '../text/messages.js'
import { type Context, Interrupted } from './command.js'
import { printReply } from './print-reply.js'
import type { CliModel } from './runtime.js'

/**
 * Asks for one message. Lines that arrive together (a paste) are one message. Resolves with `undefined` at the end of
 * the input and rejects with `Interrupted` at the second Ctrl-C in a row; `armed` says that one came just before.
 */
function ask(history: string[], armed: boolean, { io, output, signal }: Context): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason)
    // One interface a question: between questions the terminal is not in raw mode, and Ctrl-C is a signal.
    const prompt = createInterface({
      input: io.stdin,
      output: output.terminal ? io.stdout : io.stderr,
      terminal: true,
      history,
      prompt: '> ',
    })
    const lines: string[] = []
    let interrupts = armed ? 1 : 0
    let ended = false
    const end = (settle: () => void) => {
      if (ended) return
      ended = true
      signal.removeEventListener('abort', abort)
      prompt.close()
      settle()
    }
    const abort = () => end(() => reject(signal.reason))
    signal.addEventListener('abort', abort, { once: true })
    prompt.on('history', (entries: string[]) => {
      history.splice(0, history.length, ...entries)
    })
    prompt.on('line', (line) => {
      lines.push(line)
      if (lines.length === 1) setImmediate(() => end(() => resolve(lines.join('\n'))))
    })
    prompt.on('close', () => {
      end(() => {
        output.note('\n')
        resolve(undefined)
      })
    })
    prompt.on('SIGINT', () => {
      if (prompt.line !== '') {
        prompt.write(null, { ctrl: true, name: 'e' })
        prompt.write(null, { ctrl: true, name: 'u' })
        return
      }
      if (++interrupts > 1) return end(() => reject(new Interrupted('interrupted')))
      output.note('\n(Ctrl-C again or Ctrl-D to leave)\n')
      prompt.prompt()
    })
    prompt.prompt()
  })
}

/** Talks until the input ends. Ctrl-C stops an answer; a second one, at the prompt, leaves with 130. */
export async function converse(model: CliModel, options: ChatOptions, context: Context): Promise<number> {
  const { output, signal } = context
  const messages: Message[] = []
  const history: string[] = []
  let stopped = false
  output.note(output.dimNote(`${model.info.name}: Ctrl-C stops an answer, Ctrl-D leaves, /new begins anew.\n`))
  for (;;) {
    const text = await ask(history, stopped, context)
    stopped = false
    if (text === undefined) return 0
    if (text.trim() === '') continue
    if (text.trim() === '/new') {
      messages.length = 0
      continue
    }
    messages.push({ role: 'user', content: text })
    try {
      stopped = await answer(model, messages, { ...options, signal }, context)
    } catch (error) {
      if (!NibbletError.is(error) || error.code !== 'CONTEXT_OVERFLOW') throw error
      messages.pop()
      output.note(`nibblet: ${error.message} /new begins a new conversation.\n`)
    }
  }
}

/** Prints one answer and adds it to the conversation; resolves with whether Ctrl-C stopped it. */
async function answer(
  model: CliModel,
  messages: Message[],
  options: ChatOptions,
  { output, onInterrupt }: Context,
): Promise<boolean> {
  const stream = model.chat(messages, options)
  const release = onInterrupt(() => void stream.cancel())
  try {
    await printReply(stream, output)
    const { message, text, toolCalls, finishReason, usage, timings } = await stream
    // An assistant turn of nothing would only confuse the model.
    if (text !== '' || toolCalls.length > 0) messages.push(message)
    else messages.pop()
    const end = finishReason === 'stop' ? '' : `${finishReason}, `
    const rate = `${usage.outputTokens} tokens, ${timings.tokensPerSecond.toFixed(1)} tokens/s`
    await output.write(`${output.dim(`[${end}${rate}]`)}\n`)
    return finishReason === 'cancelled'
  } finally {
    release()
  }
}
