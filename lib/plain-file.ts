import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'

/**
 * Opens a file for reading, which must be a plain one: a pipe that nobody writes to would never open, and what a device
 * has to say never ends.
 *
 * @throws Error with the `code` of the system, or none when it is no plain file
 */
export async function openPlainFile(path: string): Promise<{ handle: FileHandle; size: number }> {
  const handle = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  try {
    const info = await handle.stat()
    if (!info.isFile()) throw new Error('it is no plain file')
    return { handle, size: info.size }
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** Reads a whole plain file of at most `limit` bytes. @throws Error as `openPlainFile`, or when it has more */
export async function readPlainFile(path: string, limit: number): Promise<Uint8Array> {
  const { handle, size } = await openPlainFile(path)
  try {
    if (size > limit) throw new Error(`it has ${size} bytes, at most ${limit} are read`)
    return await handle.readFile()
  } finally {
    await handle.close()
  }
}
