interface Node<T> {
  readonly children: Map<number, Node<T>>
  value?: T
}

/** Spellings by their UTF-16 units, so that a thousand added tokens are looked for in one pass over a text. */
export class SpellingTrie<T> {
  readonly #root: Node<T> = { children: new Map() }

  constructor(entries: Iterable<readonly [string, T]>) {
    for (const [spelling, value] of entries) {
      let node = this.#root
      for (let i = 0; i < spelling.length; i++) {
        const code = spelling.charCodeAt(i)
        const child: Node<T> = node.children.get(code) ?? { children: new Map() }
        node.children.set(code, child)
        node = child
      }
      node.value = value
    }
  }

  /** The value of the longest accepted spelling that starts at `start` and ends at or before `limit`. */
  longest(text: string, start: number, limit: number, accept: (value: T) => boolean): T | undefined {
    let best: T | undefined
    let node: Node<T> | undefined = this.#root
    for (let i = start; i < limit; i++) {
      node = node.children.get(text.charCodeAt(i))
      if (node === undefined) break
      if (node.value !== undefined && accept(node.value)) best = node.value
    }
    return best
  }

  /** Whether a spelling starts at `start`, or would with more text after its end. */
  mayStart(text: string, start: number): boolean {
    let node: Node<T> | undefined = this.#root
    for (let i = start; i < text.length; i++) {
      node = node.children.get(text.charCodeAt(i))
      if (node === undefined) return false
      if (node.value !== undefined) return true
    }
    return start < text.length
  }
}
