process.stdout.write('not bundled: later\n')
