import { setMaxListeners } from 'node:events'
import type { Message, ToolCall } from '../text/messages.js'
import type { StreamController } from './chat-stream.js'
import { resultText, type Tool } from './tool.js'

/** A signal that aborts with the first of several; `release` forgets them. */
function firstOf(sources: readonly AbortSignal[]): { signal: AbortSignal; release: () => void } {
  const controller = new AbortController()
  const releases = sources.map((source) => {
    const abort = () => controller.abort(source.reason)
    if (source.aborted) abort()
    // Every chat of a model listens to one of these: Node's warning of a leak would be a false one.
    setMaxListeners(0, source)
    source.addEventListener('abort', abort, { once: true })
    return () => source.removeEventListener('abort', abort)
  })
  return { signal: controller.signal, release: () => releases.forEach((release) => void release()) }
}

/** Rejects with the signal's reason when it aborts. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise<never>((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

async function executeCall(
  call: ToolCall,
  tool: Tool,
  signal: AbortSignal,
): Promise<{ output: string; isError: boolean }> {
  try {
    const checked = await tool.validate(call.input)
    if ('problem' in checked) {
      return { output: `Error: the input does not fit the tool's schema: ${checked.problem}`, isError: true }
    }
    const output = await tool.execute?.(checked.value, { signal, id: call.id })
    return { output: resultText(output), isError: false }
  } catch (error) {
    return { output: `Error: ${error instanceof Error ? error.message : String(error)}`, isError: true }
  }
}

/**
 * Executes the calls of one turn at the same time and resolves with their results as messages, in the order of the
 * calls. A tool that throws, or an input that does not fit, gives an error text as its result. Rejects with the signal's
 * reason on abort, and with that of `disposal` when the model is disposed of, without waiting for tools that heed
 * neither: theirs is aborted by both.
 */
export async function executeCalls(
  calls: readonly ToolCall[],
  tools: ReadonlyMap<string, Tool>,
  { signal: own, emit }: StreamController,
  disposal: AbortSignal,
): Promise<Message[]> {
  const { signal, release } = firstOf([own, disposal])
  try {
    const results = calls.map(async (call): Promise<Message> => {
      const tool = tools.get(call.name)
      if (tool === undefined) throw new Error(`tool ${call.name} was not offered`)
      const { output, isError } = await executeCall(call, tool, signal)
      if (!signal.aborted) emit({ type: 'tool-result', id: call.id, name: call.name, output, isError })
      return { role: 'tool', content: output, toolCallId: call.id, name: call.name }
    })
    return await Promise.race([aborted(signal), Promise.all(results)])
  } finally {
    release()
  }
}
