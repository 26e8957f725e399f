import type { Message, ToolCall } from '../text/messages.js'
import type { StreamController } from './chat-stream.js'
import { resultText, type Tool } from './tool.js'

/** Rejects with the signal's reason when it aborts; `release` forgets it. */
function aborted(signal: AbortSignal): { promise: Promise<never>; release: () => void } {
  let release = () => {}
  const promise = new Promise<never>((_, reject) => {
    const abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    release = () => signal.removeEventListener('abort', abort)
  })
  return { promise, release }
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
 * reason on abort, without waiting for tools that do not heed it.
 */
export async function executeCalls(
  calls: readonly ToolCall[],
  tools: ReadonlyMap<string, Tool>,
  { signal, emit }: StreamController,
): Promise<Message[]> {
  const abort = aborted(signal)
  try {
    const results = calls.map(async (call): Promise<Message> => {
      const tool = tools.get(call.name)
      if (tool === undefined) throw new Error(`tool ${call.name} was not offered`)
      const { output, isError } = await executeCall(call, tool, signal)
      if (!signal.aborted) emit({ type: 'tool-result', id: call.id, name: call.name, output, isError })
      return { role: 'tool', content: output, toolCallId: call.id, name: call.name }
    })
    return await Promise.race([Promise.all(results), abort.promise])
  } finally {
    abort.release()
  }
}
