import type { Message, ToolCall } from '../text/messages.js'
import { invalidOption, rejectUnknown } from './check.js'

const fields = {
  system: ['role', 'content'],
  user: ['role', 'content'],
  assistant: ['role', 'content', 'reasoning', 'toolCalls'],
  tool: ['role', 'content', 'toolCallId', 'name'],
} as const

function checkToolCalls(at: string, calls: unknown): ToolCall[] {
  if (!Array.isArray(calls)) throw invalidOption(at, 'an array of { id, name, input }', calls)
  return calls.map((call, i) => {
    if (typeof call !== 'object' || call === null) throw invalidOption(`${at}[${i}]`, '{ id, name, input }', call)
    for (const key of ['id', 'name'] as const) {
      if (typeof call[key] !== 'string') throw invalidOption(`${at}[${i}].${key}`, 'a string', call[key])
    }
    const { id, name, input } = call
    if (typeof input !== 'object' || input === null || Array.isArray(input)) {
      throw invalidOption(`${at}[${i}].input`, 'an object of arguments', input)
    }
    return { id, name, input: structuredClone(input) }
  })
}

function checkMessage(message: unknown, i: number): Message {
  const at = `messages[${i}]`
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw invalidOption(at, 'a message { role, content }', message)
  }
  const { role, content, ...rest } = message as Record<string, unknown>
  if (typeof role !== 'string' || !Object.hasOwn(fields, role)) {
    throw invalidOption(`${at}.role`, "'system', 'user', 'assistant' or 'tool'", role)
  }
  if (typeof content !== 'string') throw invalidOption(`${at}.content`, 'a string', content)
  rejectUnknown(message, fields[role as keyof typeof fields], `A message of role '${role}'`)
  const copy: Record<string, unknown> = { role, content }
  for (const [key, value] of Object.entries(rest)) {
    if (value === undefined) continue
    if (key === 'toolCalls') copy[key] = checkToolCalls(`${at}.toolCalls`, value)
    else if (typeof value === 'string') copy[key] = value
    else throw invalidOption(`${at}.${key}`, 'a string', value)
  }
  return copy as unknown as Message
}

/**
 * Checks a conversation and copies it, so that the caller may change theirs while the reply is written. A string is
 * one user message. Throws `INVALID_OPTION` naming the field, such as `messages[2].role`.
 */
export function checkMessages(input: unknown): Message[] {
  if (typeof input === 'string') return [{ role: 'user', content: input }]
  if (!Array.isArray(input) || input.length === 0) {
    throw invalidOption('messages', 'a string or an array of at least one message', input)
  }
  return input.map(checkMessage)
}
