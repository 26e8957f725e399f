import { RequestError } from '../errors.js'

/** A JSON Schema object, as tools describe their input with. */
export type JsonSchema = { readonly [keyword: string]: unknown }

/** A call that the model made: `input` by the tool's parameters. */
export interface ToolCall {
  readonly id: string
  readonly name: string
  readonly input: Readonly<Record<string, unknown>>
}

/** A tool as the model is told of it. */
export interface ToolSpec {
  readonly name: string
  readonly description?: string
  readonly parameters: JsonSchema
}

/** Instructions; usually the first message. */
export interface SystemMessage {
  readonly role: 'system'
  readonly content: string
}

/** What the user says. */
export interface UserMessage {
  readonly role: 'user'
  readonly content: string
}

/** What the model answered: its text, and apart from it its reasoning and tool calls. */
export interface AssistantMessage {
  readonly role: 'assistant'
  /** May be empty, say beside tool calls. */
  readonly content: string
  readonly reasoning?: string
  readonly toolCalls?: readonly ToolCall[]
}

/** What a tool answered. Several in a row answer the calls of one assistant message, in their order. */
export interface ToolMessage {
  readonly role: 'tool'
  readonly content: string
  readonly toolCallId?: string
  readonly name?: string
}

/**
 * One turn of a conversation.
 *
 * @example
 * const messages: Message[] = [
 *   { role: 'system', content: 'Answer briefly.' },
 *   { role: 'user', content: 'Why is the sky blue?' },
 * ]
 */
export type Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage

const fieldsOfRole: Readonly<Record<string, readonly string[]>> = {
  system: ['role', 'content'],
  user: ['role', 'content'],
  assistant: ['role', 'content', 'reasoning', 'toolCalls'],
  tool: ['role', 'content', 'toolCallId', 'name'],
}

// Names that people bring along from the OpenAI API and from chat templates.
const ourNames: Readonly<Record<string, string>> = {
  reasoning_content: 'reasoning',
  tool_calls: 'toolCalls',
  tool_call_id: 'toolCallId',
  arguments: 'input',
  inputSchema: 'parameters',
}

/**
 * Checks a conversation that a caller passed in.
 *
 * @throws RequestError `INVALID_OPTION` with the place, as `messages[2].content`
 */
export function validateMessages(value: unknown, at = 'messages'): asserts value is readonly Message[] {
  if (!Array.isArray(value)) throw invalid(at, 'an array of messages', value)
  if (value.length === 0) throw invalid(at, 'at least one message', value)
  value.forEach((message: unknown, i) => {
    validateMessage(message, `${at}[${i}]`)
  })
}

function validateMessage(value: unknown, at: string): void {
  const message = objectAt(value, at, 'a message, for example { role: "user", content: "Hi" }')
  const { role, content } = message
  const names = typeof role === 'string' && Object.hasOwn(fieldsOfRole, role) ? fieldsOfRole[role] : undefined
  if (names === undefined) throw invalid(`${at}.role`, "'system', 'user', 'assistant' or 'tool'", role)
  onlyKnown(message, names, at)
  if (typeof content !== 'string') throw invalid(`${at}.content`, "a string ('' for no text)", content)
  for (const name of ['reasoning', 'toolCallId', 'name']) {
    if (message[name] !== undefined) stringAt(message[name], `${at}.${name}`)
  }
  if (message.toolCalls === undefined) return
  if (!Array.isArray(message.toolCalls)) throw invalid(`${at}.toolCalls`, 'an array of tool calls', message.toolCalls)
  message.toolCalls.forEach((item: unknown, i) => {
    const place = `${at}.toolCalls[${i}]`
    const call = objectAt(item, place, 'a tool call { id, name, input }')
    onlyKnown(call, ['id', 'name', 'input'], place)
    stringAt(call.id, `${place}.id`)
    nameAt(call.name, `${place}.name`)
    objectAt(call.input, `${place}.input`, 'an object of arguments')
  })
}

/**
 * Checks the tools that the model is told of: names are unique and can stand inside the model's tags.
 *
 * @throws RequestError `INVALID_OPTION` with the place, as `tools[0].name`
 */
export function validateTools(value: unknown, at = 'tools'): asserts value is readonly ToolSpec[] {
  if (!Array.isArray(value)) throw invalid(at, 'an array of tools', value)
  const seen = new Set<string>()
  value.forEach((item: unknown, i) => {
    const tool = objectAt(item, `${at}[${i}]`, 'a tool { name, description, parameters }')
    const name = nameAt(tool.name, `${at}[${i}].name`)
    if (seen.has(name)) throw invalid(`${at}[${i}].name`, 'a name that no other tool has', name)
    seen.add(name)
    if (tool.description !== undefined) stringAt(tool.description, `${at}[${i}].description`)
    objectAt(tool.parameters, `${at}[${i}].parameters`, 'a JSON Schema object')
  })
}

/** Messages in the form that chat templates read: the OpenAI one, except that arguments are a mapping, not JSON text. */
export function toTemplateMessages(messages: readonly Message[]): Record<string, unknown>[] {
  return messages.map(toTemplateMessage)
}

function toTemplateMessage(message: Message): Record<string, unknown> {
  const { role, content } = message
  if (role === 'assistant') {
    const { reasoning, toolCalls = [] } = message
    const calls = toolCalls.map(({ id, name, input }) => ({
      id,
      type: 'function',
      function: { name, arguments: input },
    }))
    return {
      role,
      content,
      ...(reasoning === undefined ? {} : { reasoning_content: reasoning }),
      ...(calls.length === 0 ? {} : { tool_calls: calls }),
    }
  }
  if (role !== 'tool') return { role, content }
  const { toolCallId, name } = message
  return {
    role,
    content,
    ...(toolCallId === undefined ? {} : { tool_call_id: toolCallId }),
    ...(name === undefined ? {} : { name }),
  }
}

/** Tools in the form that chat templates read, with the keys in the order of the OpenAI API: some templates print it as JSON. */
export function toTemplateTools(tools: readonly ToolSpec[]): Record<string, unknown>[] {
  return tools.map(({ name, description, parameters }) => ({
    type: 'function',
    function: { name, ...(description === undefined ? {} : { description }), parameters },
  }))
}

function onlyKnown(value: Record<string, unknown>, names: readonly string[], at: string): void {
  for (const key of Object.keys(value)) {
    if (names.includes(key)) continue
    const ours = Object.hasOwn(ourNames, key) ? ourNames[key] : undefined
    const hint = ours !== undefined && names.includes(ours) ? `Did you mean \`${ours}\`?` : 'Leave it out.'
    throw new RequestError(
      'INVALID_OPTION',
      `Expected only ${names.join(', ')} in \`${at}\`, got \`${key}\`. ${hint}`,
      {
        details: { option: `${at}.${key}` },
      },
    )
  }
}

function objectAt(value: unknown, at: string, expected: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw invalid(at, expected, value)
}

function stringAt(value: unknown, at: string): string {
  if (typeof value === 'string') return value
  throw invalid(at, 'a string', value)
}

function nameAt(value: unknown, at: string): string {
  if (typeof value === 'string' && /^[^\s<>=]+$/.test(value)) return value
  throw invalid(at, 'a name without spaces, <, > and =', value)
}

function invalid(at: string, expected: string, value: unknown): RequestError {
  const got = value === null ? 'null' : Array.isArray(value) ? `an array of ${value.length}` : typeof value
  const shown = typeof value === 'string' ? JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}…` : value) : got
  return new RequestError(
    'INVALID_OPTION',
    `Expected ${expected} for \`${at}\`, got ${shown}. Correct it and call again.`,
    {
      details: { option: at },
    },
  )
}
