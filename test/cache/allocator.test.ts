import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { CacheAllocator, type Lease } from '../../lib/cache/allocator.js'

describe('CacheAllocator', () => {
  test('gives a slot and a page for every 64 positions, low numbers first', () => {
    const allocator = new CacheAllocator(3, 10)
    expect(allocator.take(1)).toEqual({ slot: 0, pages: [0] })
    expect(allocator.take(129)).toEqual({ slot: 1, pages: [1, 2, 3] })
    expect(allocator.take(64)).toEqual({ slot: 2, pages: [4] })
  })

  test('gives nothing when slots or pages are short, and takes nothing then', () => {
    const allocator = new CacheAllocator(2, 4)
    const first = allocator.take(200)
    expect(first?.pages).toHaveLength(4)
    expect(allocator.take(1)).toBeUndefined()
    allocator.give(first as Lease)
    expect(allocator.take(257)).toBeUndefined()
    expect(allocator.take(64)).toBeDefined()
    expect(allocator.take(64)).toBeDefined()
    expect(allocator.take(64)).toBeUndefined()
  })

  test('a sequence of no positions needs a slot and no page', () => {
    const allocator = new CacheAllocator(1, 0)
    expect(allocator.take(0)).toEqual({ slot: 0, pages: [] })
    expect(allocator.take(0)).toBeUndefined()
  })

  test('what came back is given again: the last one first', () => {
    const allocator = new CacheAllocator(2, 4)
    const first = allocator.take(128) as Lease
    allocator.take(128)
    allocator.give(first)
    expect(allocator.take(128)).toEqual(first)
  })

  test('property: no slot and no page is held twice, and everything comes back', () => {
    const steps = fc.array(
      fc.oneof(fc.record({ take: fc.integer({ min: 1, max: 500 }) }), fc.record({ give: fc.nat(20) })),
    )
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 20 }), steps, (slots, pages, plan) => {
        const allocator = new CacheAllocator(slots, pages)
        const held: Lease[] = []
        for (const step of plan) {
          if ('take' in step) {
            const wanted = Math.ceil(step.take / 64)
            const free = pages - held.reduce((sum, lease) => sum + lease.pages.length, 0)
            const lease = allocator.take(step.take)
            expect(lease !== undefined).toBe(held.length < slots && wanted <= free)
            if (lease) held.push(lease)
          } else if (held.length > 0) {
            allocator.give(held.splice(step.give % held.length, 1)[0] as Lease)
          }
          const heldSlots = held.map(({ slot }) => slot)
          const heldPages = held.flatMap((lease) => lease.pages)
          expect(new Set(heldSlots).size).toBe(heldSlots.length)
          expect(new Set(heldPages).size).toBe(heldPages.length)
          for (const page of heldPages) expect(page >= 0 && page < pages).toBe(true)
        }
        for (const lease of held.splice(0)) allocator.give(lease)
        for (let slot = 0; slot < slots; slot++) held.push(allocator.take(slot === 0 ? 64 * pages : 0) as Lease)
        expect(held.map(({ slot }) => slot).sort()).toEqual(Array.from({ length: slots }, (_, index) => index))
        expect(held[0]?.pages.slice().sort((a, b) => a - b)).toEqual(Array.from({ length: pages }, (_, index) => index))
      }),
    )
  })
})
