import type { Readable, Writable } from 'node:stream'

/** The reader of our output has gone (`nibblet … | head`): the command ends quietly. */
export class PipeClosed extends Error {}

export type Terminal = { isTTY?: boolean }

/** What a command sees of its process; tests pass their own. */
export interface Io {
  readonly stdin: Readable & Terminal
  readonly stdout: Writable & Terminal
  readonly stderr: Writable & Terminal
  readonly env: Readonly<Record<string, string | undefined>>
  /** Calls the listener at each Ctrl-C until the returned function is called. */
  onInterrupt(listener: () => void): () => void
}

/** Output to stdout and stderr with back-pressure, colour only where a terminal shows it, and quiet on a closed pipe. */
export class Output {
  readonly #io: Io
  #closed: PipeClosed | undefined
  readonly #onClosed = new Set<() => void>()

  /** `onPipeClosed` is called once, when stdout has lost its reader. */
  constructor(io: Io, onPipeClosed: (reason: PipeClosed) => void) {
    this.#io = io
    const out = (error: NodeJS.ErrnoException) => {
      if (this.#closed !== undefined) return
      this.#closed = new PipeClosed('the reader of the output has gone', { cause: error })
      for (const wake of this.#onClosed) wake()
      onPipeClosed(this.#closed)
    }
    // Notes that nobody reads are no reason to stop.
    const err = () => undefined
    // The listeners stay: the error of a closed pipe may come later than the last write.
    io.stdout.on('error', out)
    io.stderr.on('error', err)
  }

  /** Whether stdout is a terminal. */
  get terminal(): boolean {
    return this.#io.stdout.isTTY === true
  }

  /** Whether stderr is a terminal: only then is progress shown. */
  get noteTerminal(): boolean {
    return this.#io.stderr.isTTY === true
  }

  /** Writes to stdout and waits while its buffer is full. Rejects with `PipeClosed` when nobody reads it any more. */
  async write(text: string): Promise<void> {
    if (this.#closed !== undefined) throw this.#closed
    if (text === '' || this.#io.stdout.write(text)) return
    await new Promise<void>((resolve) => {
      const done = () => {
        this.#io.stdout.off('drain', done)
        this.#onClosed.delete(done)
        resolve()
      }
      this.#io.stdout.on('drain', done)
      this.#onClosed.add(done)
    })
    if (this.#closed !== undefined) throw this.#closed
  }

  /** Writes to stderr. */
  note(text: string): void {
    this.#io.stderr.write(text)
  }

  /** The text dimmed, if stdout shows colour. */
  dim(text: string): string {
    return this.#colour(this.#io.stdout) ? `\x1b[2m${text}\x1b[22m` : text
  }

  /** The text dimmed, if stderr shows colour. */
  dimNote(text: string): string {
    return this.#colour(this.#io.stderr) ? `\x1b[2m${text}\x1b[22m` : text
  }

  #colour(stream: Terminal): boolean {
    const { NO_COLOR = '', TERM } = this.#io.env
    return stream.isTTY === true && NO_COLOR === '' && TERM !== 'dumb'
  }
}
