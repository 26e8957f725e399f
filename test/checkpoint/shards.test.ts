import { basename } from 'node:path'
import { describe, expect, it } from 'vitest'
import { readShards } from '../../lib/checkpoint/shards.js'
import { expectError } from '../helpers/expect-error.js'
import { buildSafetensors, folderWith, zeros } from '../helpers/safetensors.js'

const one = buildSafetensors({ a: zeros('F32', 2) })
const two = buildSafetensors({ b: zeros('U8', 3) })
const index = (weightMap: unknown) => ({ 'model.safetensors.index.json': { metadata: {}, weight_map: weightMap } })
const sharded = { 'model-00001-of-00002.safetensors': one, 'model-00002-of-00002.safetensors': two }
const map = { a: 'model-00001-of-00002.safetensors', b: 'model-00002-of-00002.safetensors' }

async function open(files: Record<string, object | string>) {
  const { tensors } = await readShards(await folderWith(files))
  return Object.fromEntries([...tensors].map(([name, ref]) => [name, basename(ref.file)]))
}

describe('readShards', () => {
  it.each<[string, Record<string, object>, Record<string, string>]>([
    ['an index', { ...sharded, ...index(map) }, map],
    ['an index beside other files', { ...sharded, ...index(map), 'goldens.safetensors': two }, map],
    ['model.safetensors alone', { 'model.safetensors': one }, { a: 'model.safetensors' }],
    [
      'model.safetensors beside others',
      { 'model.safetensors': one, 'goldens.safetensors': one },
      { a: 'model.safetensors' },
    ],
    ['shards without an index', sharded, map],
    ['shards beside others', { ...sharded, 'goldens.safetensors': two }, map],
    ['files of any name', { 'x.safetensors': one, 'y.safetensors': two }, { a: 'x.safetensors', b: 'y.safetensors' }],
  ])('reads %s', async (_, files, expected) => {
    expect(await open(files)).toEqual(expected)
  })

  it.each<[string, Record<string, object | string>, ...string[]]>([
    ['a tensor in two files', { 'x.safetensors': one, 'y.safetensors': one }, '"a"', 'x.safetensors', 'y.safetensors'],
    ['a tensor in two shards', { ...sharded, [map.b]: one, ...index(map) }, '"a"'],
    ['a listed tensor that is nowhere', { ...sharded, ...index({ ...map, c: map.a }) }, '"c"', map.a],
    ['a tensor listed in another file', { ...sharded, ...index({ a: map.b, b: map.a }) }, '"a"', map.b],
    [
      'a tensor that is not listed',
      { ...sharded, [map.a]: buildSafetensors({ a: zeros('U8', 1), x: zeros('U8', 1) }), ...index(map) },
      '"x"',
    ],
    ['a missing shard of an index', { ...index(map), [map.a]: one }, map.b, 'missing'],
    ['a missing shard without an index', { [map.b]: two }, map.a, 'is missing'],
    ['shards of two series', { ...sharded, 'model-00003-of-00003.safetensors': two }, 'model-00003-of-00003'],
    ['both a single file and shards', { ...sharded, 'model.safetensors': one }, 'got both'],
    ['an index that leaves the folder', index({ a: '../x.safetensors' }), 'weight_map.a', '../x.safetensors'],
    ['an index with an absolute path', index({ a: '/etc/x.safetensors' }), 'weight_map.a'],
    ['an index with a Windows path', index({ a: '..\\x.safetensors' }), 'weight_map.a'],
    ['an index that names another kind of file', index({ a: 'config.json' }), 'weight_map.a'],
    ['an index that names no string', index({ a: 7 }), 'weight_map.a', 'got 7'],
    ['an index without a map', { 'model.safetensors.index.json': {} }, 'weight_map'],
    ['an index with an empty map', index({}), 'weight_map'],
    ['an index whose map is a list', index(['x.safetensors']), 'weight_map'],
    ['an index that is no JSON', { 'model.safetensors.index.json': '{' }, 'index.json', 'line 1'],
    ['a damaged shard', { ...sharded, [map.b]: new Uint8Array(20) }, map.b],
  ])('refuses %s', async (_, files, ...texts) => {
    await expectError(() => open(files), 'BAD_FORMAT', ...texts)
  })

  it('says that a folder has no weights', async () => {
    await expectError(() => open({ 'config.json': {} }), 'MODEL_NOT_FOUND', 'no .safetensors file')
  })
})
