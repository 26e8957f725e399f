const terminal = process.stderr.isTTY === true

/** Shows `label done/total` on stderr: one line that changes on a terminal, a new line every few seconds elsewhere. */
export class Progress {
  #label
  #total = 0
  #last = Date.now()
  #shown = ''

  constructor(label) {
    this.#label = label
    this.#write(label)
  }

  update(done, total) {
    this.#total = total
    const text = `${this.#label} ${done}/${total}`
    const now = Date.now()
    if (text === this.#shown || (!terminal && done < total && now - this.#last < 5_000)) return
    this.#last = now
    this.#write(text)
  }

  /** Shows all of it done. */
  finish() {
    if (this.#total > 0) this.update(this.#total, this.#total)
  }

  /** Ends the changing line of a terminal. */
  end() {
    if (terminal) process.stderr.write('\n')
  }

  #write(text) {
    this.#shown = text
    process.stderr.write(terminal ? `\r\x1b[K${text}` : `${text}\n`)
  }
}
