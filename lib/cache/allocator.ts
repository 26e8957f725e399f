import { pageTokens } from './model-cache.js'

/** What one sequence holds while it is live. */
export interface Lease {
  /** Mamba state, sampling state and token counts. */
  readonly slot: number
  /** Pages of the KV cache, in order of position. */
  readonly pages: readonly number[]
}

/**
 * Slots and pages, allocated together: a sequence gets its slot and all pages it can come to need, or waits. So a running
 * sequence never runs out.
 */
export class CacheAllocator {
  readonly #slots: number[]
  readonly #pages: number[]
  readonly pageCount: number

  constructor(slots: number, pages: number) {
    // Popped from the end: low numbers first.
    this.#slots = Array.from({ length: slots }, (_, index) => slots - 1 - index)
    this.#pages = Array.from({ length: pages }, (_, index) => pages - 1 - index)
    this.pageCount = pages
  }

  /** A lease for `tokens` positions, or undefined when slots or pages are short now. */
  take(tokens: number): Lease | undefined {
    const wanted = Math.ceil(tokens / pageTokens)
    if (this.#pages.length < wanted) return undefined
    const slot = this.#slots.pop()
    if (slot === undefined) return undefined
    return { slot, pages: wanted === 0 ? [] : this.#pages.splice(-wanted).reverse() }
  }

  /** Takes a lease back. Work enqueued later than this may reuse it: a stream runs in order. */
  give(lease: Lease): void {
    this.#slots.push(lease.slot)
    this.#pages.push(...[...lease.pages].reverse())
  }
}
