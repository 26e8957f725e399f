import type { Output } from './output.js'

/** One line on stderr that is drawn over itself, on a terminal only, at most ten times a second. */
export class Progress {
  readonly #output: Output
  #drawnAt = Number.NEGATIVE_INFINITY
  #visible = false

  constructor(output: Output) {
    this.#output = output
  }

  /** Shows `label done/total`, or with `bytes` the same in MB; `extra` follows it. */
  update(label: string, done: number, total: number, { bytes = false, extra = '' } = {}): void {
    if (!this.#output.noteTerminal) return
    const now = performance.now()
    if (now - this.#drawnAt < 100 && done < total) return
    this.#drawnAt = now
    this.#visible = true
    const size = (n: number) => (bytes ? (n / 1e6).toFixed(0) : String(n))
    const percent = total > 0 ? ` ${Math.floor((100 * done) / total)}%` : ''
    const line = `${label} ${size(done)}/${size(total)}${bytes ? ' MB' : ''}${percent} ${extra}`.trimEnd()
    this.#output.note(`\r\x1b[2K${line}`)
  }

  /** Wipes the line, before other output. */
  clear(): void {
    if (this.#visible) this.#output.note('\r\x1b[2K')
    this.#visible = false
  }
}
