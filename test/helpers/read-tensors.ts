import { readdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { readSafetensors } from '../../lib/checkpoint/safetensors.js'
import type { TestTensor } from './safetensors.js'

/** All tensors of a folder's weight files, with their bytes. */
export async function readTensors(folder: string): Promise<Record<string, Required<TestTensor>>> {
  const tensors: Record<string, Required<TestTensor>> = {}
  for (const name of readdirSync(folder).filter((file) => /^model.*\.safetensors$/.test(file))) {
    const whole = await readFile(join(folder, name))
    const { tensors: refs } = await readSafetensors(join(folder, name))
    for (const { name, dtype, shape, offset, bytes } of refs.values()) {
      tensors[name] = { dtype, shape, data: whole.subarray(offset, offset + bytes) }
    }
  }
  return tensors
}
