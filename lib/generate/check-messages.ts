import { type Message, validateMessages } from '../text/messages.js'
import { invalidOption } from './check.js'

/**
 * Checks a conversation and copies it, so that the caller may change theirs while the reply is written. A string is
 * one user message. Throws `INVALID_OPTION` naming the field, such as `messages[2].role`.
 */
export function checkMessages(input: unknown): Message[] {
  if (typeof input === 'string') return [{ role: 'user', content: input }]
  if (!Array.isArray(input)) throw invalidOption('messages', 'a string or an array of messages', input)
  validateMessages(input)
  try {
    return structuredClone(input) as Message[]
  } catch {
    throw invalidOption('messages', 'messages whose tool call inputs are plain data', input)
  }
}
