/** What one `push` releases: text that no stop string can still take back, and the stop string that ended it, if one did. */
export interface StopResult {
  text: string
  /** The stop string that was found. It is in neither this text nor any other; nothing may be pushed after it. */
  stop?: string
}

/**
 * Finds stop strings in streamed text. It releases text as early as it can and holds back the longest suffix that could
 * still become a stop string, so a stop string split over any number of pieces never shows.
 *
 * The result does not depend on how the text is cut: the match that ends first wins, and among those that end at the
 * same character the longest. The text ends where that match begins.
 *
 * @example
 * const stops = new StopStrings(['END'])
 * stops.push('a E') // { text: 'a ' }
 * stops.push('NDx') // { text: '', stop: 'END' }
 */
export class StopStrings {
  readonly #stops: readonly string[]
  #held = ''

  constructor(stops: readonly string[]) {
    this.#stops = stops
  }

  push(piece: string): StopResult {
    if (this.#stops.length === 0) return { text: piece }
    const text = this.#held + piece
    const match = this.#firstMatch(text)
    if (match !== undefined) {
      this.#held = ''
      return { text: text.slice(0, match.start), stop: match.stop }
    }
    const keep = this.#heldLength(text)
    this.#held = text.slice(text.length - keep)
    return { text: text.slice(0, text.length - keep) }
  }

  /** The held text, once it is certain that nothing follows it. */
  flush(): string {
    const text = this.#held
    this.#held = ''
    return text
  }

  #firstMatch(text: string): { start: number; stop: string } | undefined {
    let best: { start: number; stop: string } | undefined
    let bestEnd = Number.POSITIVE_INFINITY
    for (const stop of this.#stops) {
      const start = text.indexOf(stop)
      if (start < 0) continue
      const end = start + stop.length
      if (end < bestEnd || (end === bestEnd && best !== undefined && start < best.start)) {
        best = { start, stop }
        bestEnd = end
      }
    }
    return best
  }

  #heldLength(text: string): number {
    let longest = 0
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) {
          longest = length
          break
        }
      }
    }
    return longest
  }
}
