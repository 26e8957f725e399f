import { RequestError } from '../errors.js'
import type { JsonSchema, ToolSpec } from '../text/messages.js'
import { invalidOption, rejectUnknown } from './check.js'
import { schemaProblem } from './json-schema.js'

/** The part of the Standard Schema interface that tools use; zod, valibot and arktype schemas have it. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>
    readonly types?: { readonly input: Input; readonly output: Output } | undefined
  }
}

type StandardResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly StandardIssue[] }

interface StandardIssue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** What `execute` gets beside the input. */
export interface ToolCallContext {
  /** Aborted when the chat is aborted, cancelled or disposed of. */
  signal: AbortSignal
  /** Id of the call. */
  id: string
}

type InputOf<Schema> = Schema extends StandardSchema<infer _Input, infer Output> ? Output : Record<string, unknown>

/** What `tool()` takes. */
export interface ToolDefinition<Schema extends StandardSchema | JsonSchema = StandardSchema | JsonSchema> {
  /** Letters, digits, `_`, `-` and `.`, at most 64. */
  name: string
  description?: string | undefined
  /** A Standard Schema (zod, valibot, arktype) or a JSON Schema of an object. Default: an object of any shape. */
  inputSchema?: Schema | undefined
  /** JSON Schema shown to the model; only for validators that cannot export one themselves. */
  parameters?: JsonSchema | undefined
  /**
   * Runs the tool. What it returns goes back to the model: a string as it is, anything else as JSON. When it throws,
   * `Error: <message>` goes back instead and the chat goes on. Without `execute` the turn ends with `tool-calls`.
   */
  execute?: ((input: InputOf<Schema>, context: ToolCallContext) => unknown) | undefined
}

/** A tool that `chat()` can offer, made by `tool()`. */
export interface Tool extends ToolSpec {
  /** Resolves with the checked (and, by a validator, converted) input, or with why it does not fit. */
  readonly validate: (input: unknown) => Promise<{ value: unknown } | { problem: string }>
  readonly execute?: (input: unknown, context: ToolCallContext) => Promise<unknown>
}

/** A tool as `ChatOptions.tools` takes it. */
export type AnyTool = Tool | ToolSpec

const definitionNames = ['name', 'description', 'inputSchema', 'parameters', 'execute'] as const

function badSchema(name: string, problem: string, cause?: unknown): RequestError {
  return new RequestError('BAD_SCHEMA', `The input schema of tool \`${name}\` ${problem}`, {
    cause,
    details: { tool: name },
  })
}

function isStandard(schema: object): schema is StandardSchema {
  return '~standard' in schema
}

/** JSON Schema by the schema's own export: the Standard JSON Schema trait, then zod's and arktype's method. */
function exportSchema(name: string, schema: StandardSchema): unknown {
  const trait = (schema['~standard'] as { jsonSchema?: { input?: (options: object) => unknown } }).jsonSchema
  const methods = schema as { toJSONSchema?: (options: object) => unknown; toJsonSchema?: () => unknown }
  try {
    if (typeof trait?.input === 'function') return trait.input({ target: 'draft-2020-12' })
    if (typeof methods.toJSONSchema === 'function') return methods.toJSONSchema({ io: 'input' })
    if (typeof methods.toJsonSchema === 'function') return methods.toJsonSchema()
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw badSchema(name, `cannot be written as JSON Schema: ${reason}. Use types that JSON has.`, error)
  }
  throw badSchema(name, 'cannot be exported as JSON Schema by its library. Give the JSON Schema as `parameters` too.')
}

function checkJsonSchema(name: string, schema: unknown): JsonSchema {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) {
    throw badSchema(name, 'must be a Standard Schema (zod, valibot, arktype) or a JSON Schema object.')
  }
  const { $schema: _dialect, ...rest } = schema as Record<string, unknown>
  let copy: Record<string, unknown>
  try {
    copy = JSON.parse(JSON.stringify(rest))
  } catch (error) {
    throw badSchema(name, 'is not JSON: it holds itself or a bigint.', error)
  }
  if ('type' in copy && copy.type !== 'object') {
    throw badSchema(name, `must describe an object, not ${JSON.stringify(copy.type)}. Wrap the value in an object.`)
  }
  const bad = badPattern(copy)
  if (bad !== undefined) throw badSchema(name, `has a pattern that is not a regular expression: ${bad}. Correct it.`)
  return { type: 'object', ...copy } as JsonSchema
}

function badPattern(node: unknown): string | undefined {
  if (typeof node !== 'object' || node === null) return undefined
  for (const [key, value] of Object.entries(node)) {
    if (key === 'pattern' && typeof value === 'string') {
      try {
        new RegExp(value, 'u')
      } catch {
        return value
      }
    }
    const inner = badPattern(value)
    if (inner !== undefined) return inner
  }
  return undefined
}

function issueText(issue: StandardIssue): string {
  const path = (issue.path ?? []).map((part) => String(typeof part === 'object' ? part.key : part)).join('.')
  return path === '' ? issue.message : `${path}: ${issue.message}`
}

/**
 * Describes a tool that the model may call. The input of a call is checked against the schema before `execute` sees
 * it; an input that does not fit goes back to the model as an error text, so that it can correct itself.
 *
 * Throws `INVALID_OPTION` for a bad definition and `BAD_SCHEMA` for a schema that is no object schema or that cannot
 * be shown to the model as JSON Schema.
 *
 * @example
 * const weather = tool({
 *   name: 'get_weather',
 *   description: 'Current weather for a city',
 *   inputSchema: z.object({ city: z.string() }),
 *   execute: async ({ city }, { signal }) => fetchWeather(city, signal),
 * })
 * const reply = await model.chat('Is it warm in Oslo?', { tools: [weather] })
 */
export function tool<const Schema extends StandardSchema | JsonSchema>(definition: ToolDefinition<Schema>): Tool {
  if (typeof definition !== 'object' || definition === null) throw invalidOption('tool', 'an object', definition)
  rejectUnknown(definition, definitionNames, 'tool()')
  const { name, description, inputSchema, parameters, execute } = definition
  if (typeof name !== 'string' || !/^[\w.-]{1,64}$/.test(name)) {
    throw invalidOption('name', 'a tool name of 1 to 64 letters, digits, `_`, `-` or `.`', name)
  }
  if (description !== undefined && typeof description !== 'string') {
    throw invalidOption('description', 'a string', description)
  }
  if (execute !== undefined && typeof execute !== 'function') throw invalidOption('execute', 'a function', execute)

  const schema: unknown = inputSchema ?? parameters ?? { type: 'object', properties: {} }
  // arktype's schemas are functions.
  const standard =
    (typeof schema === 'object' || typeof schema === 'function') && schema !== null && isStandard(schema)
      ? schema
      : undefined
  const shown = checkJsonSchema(name, parameters ?? (standard === undefined ? schema : exportSchema(name, standard)))
  const made: Tool = {
    name,
    ...(description === undefined ? {} : { description }),
    parameters: shown,
    validate: async (input) => {
      if (standard === undefined) {
        const problem = schemaProblem(shown, input)
        return problem === undefined ? { value: input } : { problem }
      }
      const result = await standard['~standard'].validate(input)
      return result.issues === undefined
        ? { value: result.value }
        : { problem: result.issues.map(issueText).join('; ') }
    },
    ...(execute === undefined
      ? {}
      : { execute: async (input: unknown, context: ToolCallContext) => execute(input as InputOf<Schema>, context) }),
  }
  return Object.freeze(made)
}

/** The tools of a request by name. Throws `INVALID_OPTION` for what is no tool and for two of one name. */
export function resolveTools(tools: unknown): ReadonlyMap<string, Tool> {
  if (!Array.isArray(tools)) throw invalidOption('tools', 'an array of tools', tools)
  const byName = new Map<string, Tool>()
  for (const [i, entry] of tools.entries()) {
    if (typeof entry !== 'object' || entry === null)
      throw invalidOption(`tools[${i}]`, 'a tool made with tool()', entry)
    const made: Tool = typeof entry.validate === 'function' ? entry : tool(entry)
    if (byName.has(made.name)) throw invalidOption(`tools[${i}].name`, 'a name that no other tool has', made.name)
    byName.set(made.name, made)
  }
  return byName
}

/** A tool's result as the text that the model reads: a string as it is, `undefined` as `null`, the rest as JSON. */
export function resultText(output: unknown): string {
  if (typeof output === 'string') return output
  return JSON.stringify(output) ?? 'null'
}
