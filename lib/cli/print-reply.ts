import type { ChatStream } from '../generate/index.js'
import type { Output } from './output.js'

/**
 * Prints a reply while it is written, and ends with the cursor at the start of a line.
 * The answer and tool calls go to stdout. Reasoning is dimmed: beside the answer on a terminal, else on stderr.
 */
export async function printReply(stream: ChatStream, output: Output): Promise<void> {
  const { terminal } = output
  let lastReasoning = ''
  let lastText = ''
  const endReasoning = async () => {
    if (lastReasoning === '') return
    if (!lastReasoning.endsWith('\n')) await (terminal ? output.write('\n') : output.note('\n'))
    lastReasoning = ''
  }
  const endText = async () => {
    if (lastText !== '' && !lastText.endsWith('\n')) await output.write('\n')
    lastText = ''
  }
  for await (const part of stream) {
    switch (part.type) {
      case 'reasoning':
        await endText()
        if (terminal) await output.write(output.dim(part.text))
        else output.note(output.dimNote(part.text))
        lastReasoning = part.text
        break
      case 'text':
        await endReasoning()
        await output.write(part.text)
        lastText = part.text
        break
      case 'tool-call':
        await endReasoning()
        await endText()
        await output.write(`${output.dim('tool call:')} ${part.name} ${JSON.stringify(part.input)}\n`)
        break
      default:
        break
    }
  }
  await endReasoning()
  await endText()
}

/** Prints one reply of a one-turn command, and says on stderr when it was cut off. */
export async function printOneTurn(stream: ChatStream, output: Output): Promise<void> {
  await printReply(stream, output)
  const { finishReason, usage, text, toolCalls } = await stream
  if (finishReason === 'length') {
    const where = text === '' && toolCalls.length === 0 ? 'before the answer began' : 'in the answer'
    output.note(`${output.dimNote(`[cut off ${where}, at ${usage.outputTokens} tokens]`)}\n`)
  } else if (text === '' && toolCalls.length === 0) {
    output.note(`${output.dimNote('[the answer is empty]')}\n`)
  }
}
