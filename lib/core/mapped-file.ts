import { forget, watch } from './disposal.js'
import { type Handle, native } from './native.js'
import type { SyntheticFile } from './synthetic-file.js'
import type { DType } from './tensor.js'

/** A checkpoint file, mapped read-only. */
export class MappedFile {
  readonly path: string
  /** @internal */
  readonly handle: Handle<'file'>

  /** @throws ModelError BAD_FORMAT when the file cannot be opened */
  constructor(path: string) {
    this.path = path
    this.handle = native().mapFile(path)
    watch(this, 'MappedFile')
  }

  /** Unmaps the file once no load uses it. Idempotent. */
  dispose(): void {
    native().disposeFile(this.handle)
    forget(this)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Where a tensor lies in a file. */
export interface FileTensor {
  file: MappedFile | SyntheticFile
  /** Bytes from the start of the file. */
  offset: number
  dtype: DType
  /** For messages. */
  name: string
}
