import * as jinja from '@huggingface/jinja'

// @huggingface/jinja 0.5 exports no types that a NodeNext project can resolve (its declarations import without extensions):
// this is what nibblet uses of it.

/** A value of a running template; kinds are told apart by `type`, since the classes are not exported. */
export interface TemplateValue {
  readonly type: string
  readonly value: unknown
  /** Methods and properties, for example `items` of a mapping. */
  readonly builtins: ReadonlyMap<string, TemplateValue>
  __bool__(): { readonly value: boolean }
}

/** A node of a parsed template. */
export interface TemplateNode {
  readonly type: string
  [field: string]: unknown
}

/** The variables of a template; `set` refuses a name that is taken. */
export interface Environment {
  set(name: string, value: unknown): TemplateValue
}

/** Evaluates nodes; subclasses see every node in `evaluate`. */
export interface Interpreter {
  evaluate(node: TemplateNode | undefined, environment: Environment): TemplateValue
  run(program: TemplateNode): TemplateValue
}

/** A scope with the built-in functions. */
export const Environment = jinja.Environment as unknown as new () => Environment
/** The tree-walking interpreter. */
export const Interpreter = jinja.Interpreter as unknown as new (environment: Environment) => Interpreter

/** Parses a template with `trim_blocks` and `lstrip_blocks`, as transformers does. */
export function parseJinja(source: string): TemplateNode {
  const tokens = jinja.tokenize(source, { trim_blocks: true, lstrip_blocks: true })
  return jinja.parse(tokens) as unknown as TemplateNode
}
