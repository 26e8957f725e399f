/** A pattern that cannot be used: `syntax` when it is none, `unsupported` when it asks for what is not matched here. */
export class PatternError extends Error {
  readonly kind: 'syntax' | 'unsupported'

  constructor(kind: 'syntax' | 'unsupported', message: string) {
    super(message)
    this.kind = kind
  }
}

type Accepts = (character: string) => boolean

/** What a pattern says. */
export type PatternNode =
  | { readonly type: 'character'; readonly accepts: Accepts }
  | { readonly type: 'sequence' | 'choice'; readonly nodes: readonly PatternNode[] }
  | { readonly type: 'repeat'; readonly node: PatternNode; readonly least: number; readonly most: number }
  | { readonly type: 'start' | 'end' }
  | { readonly type: 'boundary'; readonly negated: boolean }
  | { readonly type: 'ahead'; readonly negated: boolean; readonly node: PatternNode }

type State =
  | { readonly type: 'accept' }
  | { readonly type: 'character'; readonly accepts: Accepts; readonly next: number }
  | { readonly type: 'split'; readonly next: number[] }
  | { readonly type: 'start'; readonly next: number }
  | { readonly type: 'end'; readonly next: number }
  | { readonly type: 'boundary'; readonly negated: boolean; readonly next: number }
  | { readonly type: 'ahead'; readonly negated: boolean; readonly from: number; readonly next: number }

/** States of all patterns of a list together, and of each: a real list has a few hundred. */
export class StateBudget {
  #left = 10_000

  take(): void {
    this.#left -= 1
    if (this.#left < 0) throw new PatternError('syntax', 'the patterns are too large')
  }
}

const wordCharacter: Accepts = (character) => /^[0-9A-Za-z_]$/.test(character)

/**
 * A pattern compiled to states that are visited at most once for each position of a name. Nothing is captured, so there
 * is no need to try twice: where backtracking takes exponential time over `(a+)+$`, this takes states × length, and with
 * a lookahead states × length².
 */
export class NameExpression {
  readonly #states: State[] = []
  readonly #budget: StateBudget
  readonly #start: number

  /** @throws {PatternError} when the budget does not suffice */
  constructor(pattern: PatternNode, budget: StateBudget) {
    this.#budget = budget
    this.#start = this.#compile(pattern, this.#add({ type: 'accept' }))
  }

  /** Whether the pattern matches from the start of the name, not necessarily up to its end. */
  matches(name: string): boolean {
    return this.#run(this.#start, name, 0)
  }

  #add(state: State): number {
    this.#budget.take()
    return this.#states.push(state) - 1
  }

  /** The state where a node begins, when what follows it begins at `next`. */
  #compile(node: PatternNode, next: number): number {
    switch (node.type) {
      case 'character':
        return this.#add({ type: 'character', accepts: node.accepts, next })
      case 'sequence':
        return node.nodes.reduceRight((after, part) => this.#compile(part, after), next)
      case 'choice':
        return this.#add({ type: 'split', next: node.nodes.map((part) => this.#compile(part, next)) })
      case 'repeat':
        return this.#repeat(node, next)
      case 'boundary':
        return this.#add({ type: 'boundary', negated: node.negated, next })
      case 'ahead': {
        const from = this.#compile(node.node, this.#add({ type: 'accept' }))
        return this.#add({ type: 'ahead', negated: node.negated, from, next })
      }
      default:
        return this.#add({ type: node.type, next })
    }
  }

  #repeat({ node, least, most }: { node: PatternNode; least: number; most: number }, next: number): number {
    let entry = next
    if (most === Number.POSITIVE_INFINITY) {
      const exits: number[] = []
      entry = this.#add({ type: 'split', next: exits })
      exits.push(this.#compile(node, entry), next)
    } else {
      for (let count = least; count < most; count++) {
        entry = this.#add({ type: 'split', next: [this.#compile(node, entry), next] })
      }
    }
    for (let count = 0; count < least; count++) {
      // A node without states of its own must not be repeated for nothing.
      this.#budget.take()
      entry = this.#compile(node, entry)
    }
    return entry
  }

  #run(start: number, name: string, from: number): boolean {
    const width = name.length + 1
    const seen = new Uint8Array(this.#states.length * width)
    const pending: number[] = []
    const visit = (index: number, at: number) => {
      const place = index * width + at
      if (seen[place] === 1) return
      seen[place] = 1
      pending.push(place)
    }
    visit(start, from)
    for (let place = pending.pop(); place !== undefined; place = pending.pop()) {
      const at = place % width
      const state = this.#states[(place - at) / width] as State
      if (state.type === 'accept') return true
      if (state.type === 'split') {
        for (const next of state.next) visit(next, at)
      } else if (state.type === 'character') {
        if (at < name.length && state.accepts(name[at] as string)) visit(state.next, at + 1)
      } else if (this.#holds(state, name, at)) {
        visit(state.next, at)
      }
    }
    return false
  }

  #holds(state: Exclude<State, { type: 'accept' | 'character' | 'split' }>, name: string, at: number): boolean {
    const word = (index: number) => wordCharacter(name[index] ?? '')
    switch (state.type) {
      case 'start':
        return at === 0
      case 'end':
        return at === name.length
      case 'ahead':
        return this.#run(state.from, name, at) !== state.negated
      case 'boundary':
        return (word(at - 1) !== word(at)) !== state.negated
    }
  }
}
