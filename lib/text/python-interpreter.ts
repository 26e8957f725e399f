import { type Environment, Interpreter, type TemplateNode as Node, type TemplateValue } from './jinja.js'
import { isList, isMapping, isString, make, pythonEquals, pythonJson, pythonStr, pythonStrip } from './python-values.js'

const statementTypes = new Set([
  'Program',
  'If',
  'For',
  'Break',
  'Continue',
  'Set',
  'Macro',
  'Comment',
  'CallStatement',
  'FilterStatement',
])
/** Nodes whose values can be larger than what went into them. */
const makers = new Set([
  'BinaryExpression',
  'CallExpression',
  'FilterExpression',
  'MemberExpression',
  'PythonIterable',
  'PythonOutput',
])
// In Python a dict's methods come before its keys (`schema.items` is the method), and these are the ones of a plain dict.
const dictMethods = new Set(['get', 'items', 'keys', 'values'])
const strips: ReadonlyMap<string, 'both' | 'left' | 'right'> = new Map([
  ['strip', 'both'],
  ['lstrip', 'left'],
  ['rstrip', 'right'],
])

/**
 * Runs a template with the semantics of Python's Jinja2 where @huggingface/jinja 0.5 has JavaScript's: values printed, joined
 * with `~` or passed through `string` in the form of `str()`; `tojson` as `json.dumps`; `==` and `in` without coercion; `trim`
 * and `strip(characters)`; dict methods before keys; loops over strings and undefined values.
 */
export class PythonInterpreter extends Interpreter {
  readonly #mark: string
  // Bound the memory: a template may double a list or a string in a loop.
  #steps = 2_000_000
  #characters = 500_000_000

  /** @param mark a character that must come through unescaped (see literals.ts) */
  constructor(environment: Environment, mark: string) {
    super(environment)
    this.#mark = mark
  }

  /** @throws RangeError when the template has made too much */
  override evaluate(node: Node | undefined, environment: Environment): TemplateValue {
    const value = this.#evaluate(node, environment)
    this.#steps -= 1
    if (makers.has(node?.type ?? '')) {
      if (isList(value)) this.#steps -= value.value.length
      else if (isString(value)) this.#characters -= value.value.length
    }
    if (this.#steps < 0 || this.#characters < 0) throw new RangeError('it makes too many values or too much text')
    return value
  }

  #evaluate(node: Node | undefined, environment: Environment): TemplateValue {
    switch (node?.type) {
      case 'PythonOutput':
        return make.string(this.#str(this.evaluate(node.expression as Node, environment)))
      case 'PythonIterable':
        return this.#iterable(this.evaluate(node.expression as Node, environment))
      case 'FilterExpression':
        return this.#filter(node, environment)
      case 'BinaryExpression':
        return this.#binary(node, environment)
      case 'TestExpression':
        return this.#test(node, environment)
      case 'MemberExpression':
        return this.#member(node, environment)
      case 'CallExpression':
        return this.#call(node, environment)
      default:
        return super.evaluate(node, environment)
    }
  }

  #str(value: TemplateValue): string {
    return pythonStr(value, this.#mark)
  }

  #iterable(value: TemplateValue): TemplateValue {
    if (isString(value)) return make.array(Array.from(value.value, make.string))
    if (isList(value)) return make.array(value.value)
    return value.type === 'UndefinedValue' ? make.array([]) : value
  }

  #binary(node: Node, environment: Environment): TemplateValue {
    const operator = (node.operator as { value: string }).value
    if (!['~', '==', '!=', 'in', 'not in'].includes(operator)) return super.evaluate(node, environment)
    const left = this.evaluate(node.left as Node, environment)
    const right = this.evaluate(node.right as Node, environment)
    if (operator === '~') return make.string(this.#str(left) + this.#str(right))
    if (operator === '==' || operator === '!=') return make.boolean(pythonEquals(left, right) === (operator === '=='))
    return make.boolean(contains(right, left) === (operator === 'in'))
  }

  #test(node: Node, environment: Environment): TemplateValue {
    const name = (node.test as { value: string }).value
    const check = extraTests.get(name)
    if (check === undefined) return super.evaluate(node, environment)
    return make.boolean(check(this.evaluate(node.operand as Node, environment)) !== node.negate)
  }

  #member(node: Node, environment: Environment): TemplateValue {
    const property = node.property as Node
    if (node.computed === true || !dictMethods.has(property.value as string)) return super.evaluate(node, environment)
    const object = this.evaluate(node.object as Node, environment)
    const method = isMapping(object) ? object.builtins.get(property.value as string) : undefined
    return method ?? super.evaluate(node, environment)
  }

  #call(node: Node, environment: Environment): TemplateValue {
    const callee = node.callee as Node
    const name =
      callee.type === 'MemberExpression' && callee.computed === false ? (callee.property as Node).value : undefined
    if (typeof name !== 'string' || !(strips.has(name) || name === 'join')) return super.evaluate(node, environment)
    const object = this.evaluate(callee.object as Node, environment)
    if (!isString(object)) return super.evaluate(node, environment)
    const [argument] = this.#arguments(node.args as Node[], environment).positional
    if (name === 'join')
      return make.string(
        this.#items(argument)
          .map((item) => this.#str(item))
          .join(object.value),
      )
    const characters = argument !== undefined && isString(argument) ? argument.value : undefined
    return make.string(pythonStrip(object.value, strips.get(name) ?? 'both', characters))
  }

  #filter(node: Node, environment: Environment): TemplateValue {
    const filter = node.filter as Node
    const plain = filter.type === 'Identifier'
    const name = String(plain ? filter.value : (filter.callee as Node).value)
    const run = this.#filters.get(name)
    if (run === undefined) return super.evaluate(node, environment)
    const operand = this.evaluate(node.operand as Node, environment)
    const given = plain ? noArguments : this.#arguments(filter.args as Node[], environment)
    return run(operand, given) ?? super.evaluate(node, environment)
  }

  #items(value: TemplateValue | undefined): TemplateValue[] {
    const list = value === undefined ? make.array([]) : this.#iterable(value)
    if (isMapping(list)) return [...list.value.keys()].map(make.string)
    if (isList(list)) return list.value
    throw new TypeError(`${list.type} is not iterable`)
  }

  #arguments(nodes: readonly Node[], environment: Environment): FilterArguments {
    const positional: TemplateValue[] = []
    const named = new Map<string, TemplateValue>()
    for (const node of nodes) {
      if (node.type === 'KeywordArgumentExpression') {
        named.set(String((node.key as Node).value), this.evaluate(node.value as Node, environment))
      } else {
        positional.push(this.evaluate(node, environment))
      }
    }
    return { positional, named }
  }

  // A filter that returns nothing leaves the case to @huggingface/jinja.
  readonly #filters: ReadonlyMap<string, Filter> = new Map<string, Filter>([
    ['string', (value) => make.string(this.#str(value))],
    ['tojson', (value, given) => make.string(pythonJson(value, jsonOptions(given), this.#mark))],
    [
      'trim',
      (value, { positional: [characters] }) =>
        make.string(
          pythonStrip(this.#str(value), 'both', characters === undefined ? undefined : this.#str(characters)),
        ),
    ],
    ['length', (value) => this.#length(value)],
    ['count', (value) => this.#length(value)],
    ['list', (value) => make.array([...this.#items(value)])],
    ['first', (value) => this.#items(value)[0] ?? make.undefined()],
    ['last', (value) => this.#items(value).at(-1) ?? make.undefined()],
    [
      'items',
      (value) => {
        if (value.type === 'UndefinedValue') return make.array([])
        if (!isMapping(value)) throw new TypeError('Can only get item pairs from a mapping.')
        return make.array([...value.value].map(([key, item]) => make.array([make.string(key), item])))
      },
    ],
    [
      'join',
      (value, { positional, named }) => {
        if (named.has('attribute') || positional.length > 1) return undefined
        const separator = positional[0] ?? named.get('d')
        const texts = this.#items(value).map((item) => this.#str(item))
        return make.string(texts.join(separator === undefined ? '' : this.#str(separator)))
      },
    ],
    [
      'default',
      (value, { positional, named }) => {
        const useFalsy = positional[1] ?? named.get('boolean')
        const falls =
          value.type === 'UndefinedValue' || (useFalsy?.__bool__().value === true && !value.__bool__().value)
        return falls ? (positional[0] ?? named.get('default_value') ?? make.string('')) : value
      },
    ],
    [
      'capitalize',
      (value) => {
        const text = this.#str(value)
        return make.string(text.charAt(0).toUpperCase() + text.slice(1).toLowerCase())
      },
    ],
    ['upper', (value) => make.string(this.#str(value).toUpperCase())],
    ['lower', (value) => make.string(this.#str(value).toLowerCase())],
  ])

  #length(value: TemplateValue): TemplateValue {
    if (isString(value)) return make.integer(Array.from(value.value).length)
    return make.integer(this.#items(value).length)
  }
}

interface FilterArguments {
  readonly positional: readonly TemplateValue[]
  readonly named: ReadonlyMap<string, TemplateValue>
}
type Filter = (value: TemplateValue, given: FilterArguments) => TemplateValue | undefined

const noArguments: FilterArguments = { positional: [], named: new Map() }

const extraTests: ReadonlyMap<string, (value: TemplateValue) => boolean> = new Map([
  ['iterable', (value) => isString(value) || isList(value) || isMapping(value) || value.type === 'UndefinedValue'],
  ['float', (value) => value.type === 'FloatValue'],
  ['number', (value) => ['IntegerValue', 'FloatValue', 'BooleanValue'].includes(value.type)],
])

function contains(container: TemplateValue, value: TemplateValue): boolean {
  if (isList(container)) return container.value.some((item) => pythonEquals(item, value))
  if (isMapping(container)) return isString(value) && container.value.has(value.value)
  if (isString(container) && isString(value)) return container.value.includes(value.value)
  if (container.type === 'UndefinedValue') return false
  throw new TypeError(`cannot look for ${value.type} in ${container.type}`)
}

function jsonOptions({ positional, named }: FilterArguments) {
  // In the order of transformers' tojson(x, ensure_ascii, indent, separators, sort_keys).
  const option = (i: number, name: string) => positional[i] ?? named.get(name)
  const indent = option(1, 'indent')
  const separators = option(2, 'separators')
  return {
    ensureAscii: option(0, 'ensure_ascii')?.__bool__().value === true,
    indent: indent?.type === 'IntegerValue' ? (indent.value as number) : undefined,
    separators:
      separators !== undefined && isList(separators)
        ? ([String(separators.value[0]?.value), String(separators.value[1]?.value)] as const)
        : undefined,
    sortKeys: option(3, 'sort_keys')?.__bool__().value === true,
  }
}

/**
 * Marks, in a parsed template, what is printed and what is looped over, for `PythonInterpreter`: by itself an evaluated
 * expression does not tell `{{ none }}`, which prints `None`, from a statement, which prints nothing. Changes the tree.
 */
export function preparePrinting(node: Node): void {
  for (const key of ['body', 'alternate', 'defaultBlock']) {
    const block = node[key]
    if (!Array.isArray(block)) continue
    block.forEach((child: Node, i) => {
      if (statementTypes.has(child.type)) preparePrinting(child)
      else if (child.type !== 'StringLiteral') block[i] = wrap('PythonOutput', child)
    })
  }
  if (node.type !== 'For') return
  const iterable = node.iterable as Node
  if (iterable.type === 'SelectExpression') iterable.lhs = wrap('PythonIterable', iterable.lhs as Node)
  else node.iterable = wrap('PythonIterable', iterable)
}

// The interpreter looks for `kwargs` and `varargs` in macros by walking whatever is an instance of its Statement class.
function wrap(type: string, expression: Node): Node {
  return Object.assign(Object.create(Object.getPrototypeOf(expression)), { type, expression })
}
