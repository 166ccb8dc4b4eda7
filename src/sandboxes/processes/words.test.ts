import { expect, test } from 'bun:test'
import { plainWords } from './words.ts'

test.each([
  ['server', ['server']],
  ['  /bin/server  --port=80 a-b.c  ', ['/bin/server', '--port=80', 'a-b.c']],
  [`say 'two words' "and three more" ''`, ['say', 'two words', 'and three more', '']],
  [`go --name='two words'`, ['go', '--name=two words']],
  ['exec /hello you', ['/hello', 'you']],
  ['exec', ['exec']],
])('%p has plain words', (command, words) => {
  expect(plainWords(command)).toEqual(words)
})

test.each([
  '',
  'a | b',
  'a && b',
  'echo $HOME',
  'ls *',
  'A=1 env',
  'a > b',
  '~/x',
  `say "$HOME"`,
  `say 'half`,
  'a; b',
  'a\\ b',
])('%p is for a shell', (command) => {
  expect(plainWords(command)).toBeNull()
})
