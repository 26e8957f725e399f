import { forget, watch } from './disposal.js'
import { type Handle, type NativeDraw, native } from './native.js'

/** What the regions of a synthetic file are drawn from (kernels/synthetic/draw.h). */
export interface SyntheticFileLayout {
  /** For messages. */
  readonly path: string
  readonly tables: readonly { draw: NativeDraw; alternate: boolean; entries: Uint8Array }[]
  /** Offset, bytes and index of the table of every region; they follow one another. */
  readonly places: Float64Array
  /** One a region. */
  readonly seeds: BigUint64Array
}

/** A file that exists only as a description; loads make its bytes as they need them. */
export class SyntheticFile {
  readonly path: string
  /** @internal */
  readonly handle: Handle<'file'>

  constructor({ path, tables, places, seeds }: SyntheticFileLayout) {
    this.path = path
    const packed = tables.map(({ draw, alternate, entries }) => [draw, alternate, entries] as const)
    this.handle = native().createSyntheticFile(path, packed, places, seeds)
    watch(this, 'SyntheticFile')
  }

  /** Forgets the description once no load uses it. Idempotent. */
  dispose(): void {
    native().disposeFile(this.handle)
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
