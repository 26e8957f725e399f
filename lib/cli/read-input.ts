import { readFile } from 'node:fs/promises'
import { UsageError } from './args.js'
import type { Context } from './command.js'

function decode(bytes: Uint8Array, source: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new UsageError(`${source} is not UTF-8 text.`)
  }
}

/** Everything on stdin as text. Ctrl-C ends the wait. */
export async function readStdin({ io, signal }: Context): Promise<string> {
  signal.throwIfAborted()
  const chunks: Uint8Array[] = []
  const stop = () => io.stdin.destroy(signal.reason)
  signal.addEventListener('abort', stop, { once: true })
  try {
    for await (const chunk of io.stdin) chunks.push(typeof chunk === 'string' ? Buffer.from(chunk) : chunk)
  } finally {
    signal.removeEventListener('abort', stop)
  }
  return decode(Buffer.concat(chunks), 'stdin')
}

/** The text of a file, or of stdin for `-`. */
export async function readText(path: string, context: Context): Promise<string> {
  if (path === '-') return readStdin(context)
  let bytes: Uint8Array
  try {
    bytes = await readFile(path, { signal: context.signal })
  } catch (error) {
    if (context.signal.aborted) throw context.signal.reason
    throw new Error(`Cannot read ${path}: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
  return decode(bytes, path)
}

/** A text without the line break that ends files and the output of `echo`. */
export function withoutLastBreak(text: string): string {
  return text.replace(/\r?\n$/, '')
}
