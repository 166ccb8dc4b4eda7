import { expect, test } from 'bun:test'
import { AddressList, isAddressEntry, isPublicAddress, plainAddress } from './addresses.ts'

test('only addresses of the internet are public', () => {
  for (const address of [
    '1.1.1.1',
    '8.8.8.8',
    '93.184.216.34',
    '172.32.0.1',
    '2606:4700::1111',
    '::ffff:8.8.8.8',
  ]) {
    expect([address, isPublicAddress(address)]).toEqual([address, true])
  }
  for (const address of [
    ...[
      '127.0.0.1',
      '127.8.8.8',
      '10.1.2.3',
      '172.16.0.1',
      '172.31.255.255',
      '192.168.1.1',
      '169.254.169.254',
    ],
    ...['0.0.0.0', '100.64.0.1', '224.0.0.1', '255.255.255.255', '192.0.2.1', '198.18.0.1'],
    ...[
      '::1',
      '::',
      'fe80::1',
      'fe80::1%eth0',
      'fd00::1',
      'fc00::1',
      'ff02::1',
      '2001:db8::1',
      '2002:7f00:1::',
    ],
    ...[
      '::ffff:127.0.0.1',
      '::ffff:7f00:1',
      '0:0:0:0:0:ffff:a9fe:a9fe',
      '64:ff9b::7f00:1',
      '2001::1',
      '::127.0.0.1',
    ],
    ...['', 'localhost', '1.1.1', '0x7f.1', '01.2.3.4'],
  ]) {
    expect([address, isPublicAddress(address)]).toEqual([address, false])
  }
})

test('an address has one spelling', () => {
  expect(plainAddress('[::FFFF:127.0.0.1]')).toBe('127.0.0.1')
  expect(plainAddress('0:0::1')).toBe('::1')
  expect(plainAddress('fe80::1%eth0')).toBe('fe80::1')
})

test('a list has addresses and ranges, for every port or for one', () => {
  const list = new AddressList(['10.0.0.0/8', '127.0.0.1:8000', '[::1]:8000', 'fd00::/8', '[fe80::1]'])
  expect(list.has('10.9.8.7', 1)).toBe(true)
  expect(list.has('::ffff:10.9.8.7', 1)).toBe(true)
  expect(list.has('11.0.0.1', 1)).toBe(false)
  expect(list.has('127.0.0.1', 8000)).toBe(true)
  expect(list.has('127.0.0.1', 8001)).toBe(false)
  expect(list.has('127.0.0.2', 8000)).toBe(false)
  expect(list.has('::1', 8000)).toBe(true)
  expect(list.has('::1', 8001)).toBe(false)
  expect(list.has('fd12::1', 443)).toBe(true)
  expect(list.has('fe80::1%eth0', 443)).toBe(true)
  expect(list.has('localhost', 8000)).toBe(false)
  for (const entry of [
    '10.0.0.0/33',
    'localhost',
    '1.2.3.4:0',
    '1.2.3.4:70000',
    '::1/129',
    '',
    '1.2.3',
    '[::1',
  ]) {
    expect([entry, isAddressEntry(entry)]).toEqual([entry, false])
  }
})
